//! What of a 16550A survives its process.

use cellblock_sdk::state::{Decoder, Encoder, StateError};

use crate::fifo::Fifo;
use crate::spec::{FIFO_BYTES, fcr, ier, lcr, mcr, msr};

const TAG: u8 = 1;
const VERSION: u8 = 2;

/// The registers and what the receiver holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct State {
    /// Interrupt Enable Register.
    pub ier: u8,
    /// FIFO Control Register, without the bits that clear themselves.
    pub fcr: u8,
    /// Line Control Register.
    pub lcr: u8,
    /// MODEM Control Register.
    pub mcr: u8,
    /// Scratch Register.
    pub scr: u8,
    /// Divisor Latch.
    pub divisor: u16,
    /// Characters received and not read.
    pub received: Fifo,
    /// LSR's overrun error.
    pub overrun: bool,
    /// MSR's low four bits.
    pub modem_deltas: u8,
    /// THR became empty, and IIR has not told so.
    pub thr_emptied: bool,
    /// Characters wait below the trigger level for too long.
    pub timeout: bool,
    /// When they will, in ns of the monotonic clock.
    pub timeout_at: Option<u64>,
    /// Characters in the transmitter.
    pub sending: u8,
    /// When they are all sent, in ns of the monotonic clock; `None` = they are.
    pub sent_at: Option<u64>,
}

impl Default for State {
    fn default() -> Self {
        State {
            ier: 0,
            fcr: 0,
            lcr: lcr::EIGHT_N_ONE,
            mcr: 0,
            scr: 0,
            divisor: 1,
            received: Fifo::default(),
            overrun: false,
            modem_deltas: 0,
            thr_emptied: true,
            timeout: false,
            timeout_at: None,
            sending: 0,
            sent_at: None,
        }
    }
}

impl State {
    /// Appends all fields.
    pub fn save(&self, out: &mut Encoder<'_>) {
        out.head(TAG, VERSION);
        out.bytes(&[self.ier, self.fcr, self.lcr, self.mcr, self.scr]);
        out.bytes(&self.divisor.to_le_bytes());
        out.u8(self.received.len() as u8);
        out.bytes(&self.received.to_bytes());
        out.bool(self.overrun);
        out.u8(self.modem_deltas);
        out.bool(self.thr_emptied);
        out.bool(self.timeout);
        out.bool(self.timeout_at.is_some());
        out.u64(self.timeout_at.unwrap_or(0));
        out.u8(self.sending);
        out.bool(self.sent_at.is_some());
        out.u64(self.sent_at.unwrap_or(0));
    }

    /// The state in `saved`.
    ///
    /// # Errors
    /// Bytes that [`State::save`] never writes.
    pub fn restore(saved: &[u8]) -> Result<State, StateError> {
        let mut fields = Decoder::new(saved, TAG, VERSION)?;
        let ier = fields.u8_where("ier", "0 to 0xf", |value| value & !ier::MASK == 0)?;
        let legal_fcr =
            |value| value == 0 || value & (fcr::ENABLE | fcr::RESET_RX | fcr::RESET_TX) == fcr::ENABLE;
        let fcr = fields.u8_where("fcr", "0, or bit 0 set and bits 1 and 2 clear", legal_fcr)?;
        let lcr = fields.u8("lcr")?;
        let mcr = fields.u8_where("mcr", "0 to 0x1f", |value| value & !mcr::MASK == 0)?;
        let scr = fields.u8("scr")?;
        let divisor = fields.bytes("divisor").map(u16::from_le_bytes)?;
        let capacity = if fcr & fcr::ENABLE != 0 { FIFO_BYTES } else { 1 };
        let fits = |value: u8| usize::from(value) <= capacity;
        let count = fields.u8_where("received.count", "what the FIFO holds", fits)?;
        let received = Fifo::from_bytes(fields.bytes("received")?, count.into());
        let overrun = fields.bool("overrun")?;
        let deltas = |value: u8| value & !msr::DELTA_MASK == 0;
        let modem_deltas = fields.u8_where("modem_deltas", "0 to 0xf", deltas)?;
        let thr_emptied = fields.bool("thr_emptied")?;
        let timeout = fields.bool("timeout")?;
        let armed = fields.bool("timeout_armed")?;
        let timeout_at = fields.u64("timeout_at").map(|at| armed.then_some(at))?;
        let sending = fields.u8_where("sending", "0 to 16", |value| usize::from(value) <= FIFO_BYTES)?;
        let busy = fields.bool("sent_armed")?;
        let sent_at = fields.u64("sent_at").map(|at| busy.then_some(at))?;
        fields.end()?;
        Ok(State {
            ier,
            fcr,
            lcr,
            mcr,
            scr,
            divisor,
            received,
            overrun,
            modem_deltas,
            thr_emptied,
            timeout,
            timeout_at,
            sending,
            sent_at,
        })
    }
}
