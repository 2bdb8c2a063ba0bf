//! One request after the other.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cellblock_sdk::device::Clock;
use cellblock_sdk::virtio::{Chain, ChainError, Interrupt, Limiter, Serve, Space};
use cellblock_wire::device::{BlockConfig, CacheMode, SECTOR};

use crate::image::Image;
use crate::spec::{
    HEADER_BYTES, ID_BYTES, MAX_RANGE_SECTORS, MAX_RANGES, SEGMENT_BYTES, SEGMENT_UNMAP, WRITEBACK, feature,
    request, status,
};

/// Bytes on their way between guest and image.
const BOUNCE_BYTES: usize = 256 << 10;
/// What `O_DIRECT` wants at most of a buffer's address.
const ALIGNMENT: usize = 4096;

/// Why a request is not done; all that the driver is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Failure {
    /// Not a request of this device.
    Unsupported,
    /// A bad range or length, buffers that do not hold it or are not there, or the host failed.
    Failed,
}

impl Failure {
    fn status(self) -> u8 {
        match self {
            Failure::Unsupported => status::UNSUPP,
            Failure::Failed => status::IOERR,
        }
    }
}

impl From<ChainError> for Failure {
    fn from(_: ChainError) -> Self {
        Failure::Failed
    }
}

impl From<io::Error> for Failure {
    fn from(_: io::Error) -> Self {
        Failure::Failed
    }
}

/// What a disk's queues have in common.
#[derive(Debug, Clone)]
pub struct Shared {
    /// None if there is nothing to limit.
    limiter: Option<Arc<Mutex<Limiter>>>,
    space: Space,
    interrupt: Interrupt,
}

impl Shared {
    /// Of the disk that `config` describes, whose configuration space is `space`.
    pub fn new(config: &BlockConfig, space: Space, interrupt: Interrupt) -> Self {
        let limiter = Limiter::new(&config.limits);
        let limiter = (!limiter.is_unlimited()).then(|| Arc::new(Mutex::new(limiter)));
        Shared { limiter, space, interrupt }
    }

    fn limiter(&self) -> Option<MutexGuard<'_, Limiter>> {
        // Nothing panics while it holds the lock, and what it guards is whole at any time.
        self.limiter.as_ref().map(|limiter| limiter.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The driver's choice.
    fn writeback(&self) -> bool {
        let mut writeback = [0];
        self.space.get(WRITEBACK, &mut writeback);
        writeback != [0]
    }
}

/// Serves one queue of a disk.
#[derive(Debug)]
pub struct Requests<I, C> {
    image: I,
    clock: C,
    shared: Shared,
    sectors: u64,
    block_size: u32,
    read_only: bool,
    cache: CacheMode,
    id: [u8; ID_BYTES],
    /// The driver flushes, so that writes need not be stable.
    flushes: bool,
    /// The driver chooses in the configuration space whether they need.
    chooses: bool,
    bounce: Bounce,
}

impl<I: Image, C: Clock> Requests<I, C> {
    /// Of the disk that `config` describes, kept in `image`.
    pub fn new(config: &BlockConfig, image: I, clock: C, shared: Shared) -> Self {
        let mut id = [0; ID_BYTES];
        id.iter_mut().zip(config.id.bytes()).for_each(|(to, from)| *to = from);
        Requests {
            image,
            clock,
            shared,
            sectors: config.sectors,
            block_size: config.block_size,
            read_only: config.read_only,
            cache: config.cache,
            id,
            flushes: false,
            chooses: false,
            bounce: Bounce::new(),
        }
    }

    fn perform(&mut self, chain: &mut Chain<'_>) -> Result<(), Failure> {
        let mut header = [0; HEADER_BYTES];
        chain.read(&mut header)?;
        let (kind, sector) = (number32(&header, 0), number64(&header, 8));
        self.account(kind, chain);
        match kind {
            request::IN => self.read(chain, sector),
            request::OUT => self.write(chain, sector),
            request::FLUSH => self.flush(),
            request::GET_ID => Ok(chain.write(&self.id)?),
            request::DISCARD => self.ranges(chain, kind),
            request::WRITE_ZEROES => self.ranges(chain, kind),
            _ => Err(Failure::Unsupported),
        }
    }

    /// The byte offset of `length` bytes from `sector` on, if they lie on the disk and are whole blocks.
    fn locate(&self, sector: u64, length: u64) -> Result<u64, Failure> {
        let block_sectors = u64::from(self.block_size) / SECTOR;
        let whole = length.is_multiple_of(SECTOR) && (length / SECTOR).is_multiple_of(block_sectors);
        let end = sector.checked_add(length / SECTOR).filter(|end| *end <= self.sectors);
        if !whole || !sector.is_multiple_of(block_sectors) || end.is_none() {
            return Err(Failure::Failed);
        }
        // The capacity is such that no byte offset overflows.
        Ok(sector * SECTOR)
    }

    /// Takes a request, and the bytes that it moves, off the limits: at its beginning, so that the next one waits.
    fn account(&self, kind: u32, chain: &Chain<'_>) {
        if let Some(mut limiter) = self.shared.limiter() {
            let bytes = match kind {
                request::IN => chain.writable(),
                request::OUT => chain.readable(),
                _ => 0,
            };
            // What is longer than the disk is not done.
            limiter.take(bytes.min(self.sectors.saturating_mul(SECTOR)), self.clock.monotonic());
        }
    }

    fn read(&mut self, chain: &mut Chain<'_>, sector: u64) -> Result<(), Failure> {
        let mut offset = self.locate(sector, chain.writable())?;
        if let Some(file) = self.image.file() {
            let most = chain.writable();
            offset += straight(most, |done| chain.fill_from(file, Some(offset + done), most - done))?;
        }
        while chain.writable() > 0 {
            let piece = self.bounce.first(chain.writable());
            self.image.read(offset, piece)?;
            chain.write(piece)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn write(&mut self, chain: &mut Chain<'_>, sector: u64) -> Result<(), Failure> {
        self.writable()?;
        let mut offset = self.locate(sector, chain.readable())?;
        let stable = self.stable();
        if let Some(file) = self.image.file() {
            let most = chain.readable();
            offset += straight(most, |done| {
                let (at, rest) = (Some(offset + done), most - done);
                if stable { chain.send_stable(file, at, rest) } else { chain.send_to(file, at, rest) }
            })?;
        }
        while chain.readable() > 0 {
            let piece = self.bounce.first(chain.readable());
            chain.read(piece)?;
            self.image.write(offset, piece, stable)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    fn writable(&self) -> Result<(), Failure> {
        if self.read_only { Err(Failure::Failed) } else { Ok(()) }
    }

    /// Whether each write has to be on stable storage (§5.2.6.2).
    fn stable(&self) -> bool {
        let waits = self.flushes && (!self.chooses || self.shared.writeback());
        !waits && self.cache != CacheMode::Unsafe
    }

    fn flush(&self) -> Result<(), Failure> {
        match self.cache {
            CacheMode::Unsafe => Ok(()),
            CacheMode::Writeback | CacheMode::Direct => Ok(self.image.flush()?),
        }
    }

    /// Discard and write-zeroes: all segments are checked before the first is done.
    fn ranges(&mut self, chain: &mut Chain<'_>, kind: u32) -> Result<(), Failure> {
        self.writable()?;
        let (length, one) = (chain.readable(), SEGMENT_BYTES as u64);
        if length == 0 || !length.is_multiple_of(one) || length / one > MAX_RANGES.into() {
            return Err(Failure::Failed);
        }
        let mut ranges = [Range::default(); MAX_RANGES as usize];
        let ranges = ranges.get_mut(..(length / one) as usize).unwrap_or_default();
        for range in ranges.iter_mut() {
            *range = self.range(chain, kind)?;
        }
        for range in ranges.iter() {
            self.range_done(range, kind)?;
        }
        if self.stable() {
            self.image.flush()?;
        }
        Ok(())
    }

    fn range(&self, chain: &mut Chain<'_>, kind: u32) -> Result<Range, Failure> {
        let mut segment = [0; SEGMENT_BYTES];
        chain.read(&mut segment)?;
        let (sector, sectors, flags) = (number64(&segment, 0), number32(&segment, 8), number32(&segment, 12));
        // §5.2.6.2: an unknown flag, or unmap on a discard, is not supported.
        let known = if kind == request::WRITE_ZEROES { SEGMENT_UNMAP } else { 0 };
        if flags & !known != 0 {
            return Err(Failure::Unsupported);
        }
        if sectors > MAX_RANGE_SECTORS {
            return Err(Failure::Failed);
        }
        let length = u64::from(sectors) * SECTOR;
        Ok(Range { offset: self.locate(sector, length)?, length, unmap: flags & SEGMENT_UNMAP != 0 })
    }

    fn range_done(&mut self, range: &Range, kind: u32) -> Result<(), Failure> {
        let Range { offset, length, unmap } = *range;
        if length == 0 {
            return Ok(());
        }
        if kind == request::DISCARD {
            return Ok(self.image.discard(offset, length)?);
        }
        if self.image.zero(offset, length, unmap)? {
            return Ok(());
        }
        let mut done = 0;
        while done < length {
            let piece = self.bounce.first(length - done);
            piece.fill(0);
            self.image.write(offset + done, piece, false)?;
            done += piece.len() as u64;
        }
        Ok(())
    }
}

impl<I: Image, C: Clock> Serve for Requests<I, C> {
    fn begin(&mut self, features: u64) {
        self.flushes = features & feature::FLUSH != 0;
        self.chooses = features & feature::CONFIG_WCE != 0;
        if self.chooses && !self.flushes {
            // §5.2.5.2. No driver that the specification knows can see it change.
            self.shared.space.set(WRITEBACK, &[0], &self.shared.interrupt);
        }
    }

    fn not_before(&self) -> Option<u64> {
        self.shared.limiter()?.ready_at(self.clock.monotonic())
    }

    fn serve(&mut self, chain: &mut Chain<'_>) -> u32 {
        answer(chain, |chain| self.perform(chain))
    }

    fn refuse(&mut self, chain: &mut Chain<'_>) -> u32 {
        answer(chain, |_| Err(Failure::Failed))
    }
}

/// Puts the status behind what `perform` does. How many bytes are written then from the beginning on.
fn answer(chain: &mut Chain<'_>, perform: impl FnOnce(&mut Chain<'_>) -> Result<(), Failure>) -> u32 {
    let Ok(status_byte) = chain.reserve_last() else { return 0 };
    let outcome = perform(chain);
    if outcome.is_err() {
        chain.fail();
    }
    let status = outcome.map_or_else(Failure::status, |()| status::OK);
    let told = chain.write_last(status_byte, status).is_ok();
    // The length counts from the beginning on, so the status counts only behind a whole rest.
    let whole = told && chain.writable() == 0;
    chain.written() + u32::from(whole)
}

/// Has `step` move `most` bytes, from the one on that it is told; returns how many it moved. The host may refuse buffers that
/// are not aligned (`O_DIRECT`): the rest is to be copied.
fn straight(most: u64, mut step: impl FnMut(u64) -> io::Result<usize>) -> Result<u64, Failure> {
    let mut done = 0;
    while done < most {
        match step(done) {
            // The file has shrunk under its guest.
            Ok(0) => return Err(Failure::Failed),
            Ok(count) => done += count as u64,
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

#[derive(Debug, Clone, Copy, Default)]
struct Range {
    offset: u64,
    length: u64,
    unmap: bool,
}

/// A buffer at an address that `O_DIRECT` takes.
#[derive(Debug)]
struct Bounce {
    bytes: Vec<u8>,
    start: usize,
}

impl Bounce {
    fn new() -> Self {
        let bytes = vec![0; BOUNCE_BYTES + ALIGNMENT];
        let start = bytes.as_ptr().align_offset(ALIGNMENT).min(ALIGNMENT);
        Bounce { bytes, start }
    }

    /// Its first `wanted` bytes, or all of it.
    fn first(&mut self, wanted: u64) -> &mut [u8] {
        let length = usize::try_from(wanted).unwrap_or(usize::MAX).min(BOUNCE_BYTES);
        self.bytes.get_mut(self.start..self.start + length).unwrap_or_default()
    }
}

fn number32(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u32::from_le_bytes(*chunk))
}

fn number64(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |chunk| u64::from_le_bytes(*chunk))
}
