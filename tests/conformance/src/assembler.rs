//! Machine code for the operations: 64-bit mode, ring 0, general-purpose registers only.
//!
//! Only instructions that KVM's emulator knows, so that the guests also run where guest kernel code is emulated
//! (which leaves out `int`, `iretq` and SSE: an interrupt's handler ends by going back to idling with a fresh stack).

use crate::{LINE, LINE_VECTOR, Op, READY, Space};

/// Where the code starts.
pub const CODE: u64 = 0x1_0000;
/// Where string instructions read and write.
pub const BUFFER: u64 = 0x4_0000;
/// Top of the stack.
pub const STACK: u64 = 0x8_0000;
/// 256 gates of 16 bytes.
pub const IDT: u64 = 0x9_0000;

const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// Not mapped by the page tables (they end at 4 GiB): any access is a page fault.
const UNMAPPED: u64 = 0x80_0000_0000;
/// Mapped, with no memory behind.
const DEVICE: u64 = 0xd000_0000;

/// A guest's code and what lies in its memory.
#[derive(Debug, Default)]
pub struct Image {
    /// At [`CODE`].
    pub code: Vec<u8>,
    /// At [`BUFFER`].
    pub buffer: Vec<u8>,
    /// Handler addresses by vector.
    pub handlers: Vec<(u8, u64)>,
}

/// `paddb xmm0, [rbx]` on device memory: no emulator does SSE arithmetic on it.
pub const UNKNOWN: [u8; 4] = [0x66, 0x0f, 0xfc, 0x03];

/// Assembles a program, ended by a loop.
pub fn assemble(program: &[Op]) -> Image {
    let mut image = Image::default();
    for op in program {
        image.op(op);
    }
    image.op(&Op::Compute);
    image
}

impl Image {
    fn emit(&mut self, code: &[u8]) {
        self.code.extend_from_slice(code);
    }

    fn here(&self) -> u64 {
        CODE + self.code.len() as u64
    }

    fn op(&mut self, op: &Op) {
        match op {
            Op::Read(Space::Mmio(addr), bytes) => {
                self.mov_rbx(*addr);
                self.emit(&[0x31, 0xc0]); // xor eax, eax
                self.emit(by_width(
                    *bytes,
                    &[0x8a, 0x03],
                    &[0x66, 0x8b, 0x03],
                    &[0x8b, 0x03],
                    &[0x48, 0x8b, 0x03],
                ));
            }
            Op::Write(Space::Mmio(addr), data) => {
                self.mov_rbx(*addr);
                self.mov_rax(data);
                self.emit(by_width(
                    data.len(),
                    &[0x88, 0x03],
                    &[0x66, 0x89, 0x03],
                    &[0x89, 0x03],
                    &[0x48, 0x89, 0x03],
                ));
            }
            Op::Read(Space::Pio(port), bytes) => {
                self.mov_edx(*port);
                self.emit(&[0x31, 0xc0]);
                self.emit(by_width(*bytes, &[0xec], &[0x66, 0xed], &[0xed], &[]));
            }
            Op::Write(Space::Pio(port), data) => {
                self.mov_edx(*port);
                self.mov_rax(data);
                self.emit(by_width(data.len(), &[0xee], &[0x66, 0xef], &[0xef], &[]));
            }
            Op::ReadString { port, bytes, count } => self.read_string(*port, *bytes, *count),
            Op::WriteString { port, elements } => {
                let at = BUFFER + self.buffer.len() as u64;
                self.buffer.extend(elements.iter().flatten());
                self.mov_edx(*port);
                self.mov_esi(at);
                self.mov_ecx(elements.len());
                // cld; rep outs
                self.emit(&[0xfc]);
                self.emit(by_width(
                    elements[0].len(),
                    &[0xf3, 0x6e],
                    &[0x66, 0xf3, 0x6f],
                    &[0xf3, 0x6f],
                    &[],
                ));
            }
            Op::ReadForEver(port) => {
                self.mov_edx(*port);
                self.emit(&[0xec, 0xeb, 0xfd]); // in al, dx; jmp -3
            }
            Op::Compute => self.emit(&[0x48, 0xff, 0xc1, 0xeb, 0xfb]), // inc rcx; jmp -5
            Op::Halt => self.emit(&[0xfa, 0xf4]),                      // cli; hlt
            Op::TripleFault => {
                self.mov_rbx(UNMAPPED);
                self.emit(&[0x8a, 0x03]);
            }
            Op::Unknown => {
                self.mov_rbx(DEVICE);
                self.emit(&UNKNOWN);
            }
            Op::Serve(port) => self.serve(*port),
        }
    }

    /// `rep ins` into the buffer, then `out` of each element, taken from there.
    fn read_string(&mut self, port: u16, bytes: usize, count: usize) {
        let at = BUFFER + self.buffer.len() as u64;
        self.buffer.resize(self.buffer.len() + bytes * count, 0);
        self.mov_edx(port);
        self.emit(&[0xbf]); // mov edi, at
        self.emit(&(at as u32).to_le_bytes());
        self.mov_ecx(count);
        self.emit(&[0xfc]);
        self.emit(by_width(bytes, &[0xf3, 0x6c], &[0x66, 0xf3, 0x6d], &[0xf3, 0x6d], &[]));
        for element in 0..count {
            self.mov_rbx(at + (element * bytes) as u64);
            self.emit(by_width(bytes, &[0x8a, 0x03], &[0x66, 0x8b, 0x03], &[0x8b, 0x03], &[]));
            self.emit(by_width(bytes, &[0xee], &[0x66, 0xef], &[0xef], &[]));
        }
    }

    fn serve(&mut self, port: u16) {
        // mov al, 0xff; out 0x21, al; out 0xa1, al: the old controllers get every line too, and would deliver vector 5.
        self.emit(&[0xb0, 0xff, 0xe6, 0x21, 0xe6, 0xa1]);
        self.store(LOCAL_APIC + 0xf0, 0x1ff); // spurious vector 0xff, enabled
        self.store(IO_APIC, 0x10 + 2 * LINE); // select the line's low half
        self.store(IO_APIC + 0x10, u32::from(LINE_VECTOR)); // edge, fixed, physical, unmasked
        self.store(IO_APIC, 0x11 + 2 * LINE);
        self.store(IO_APIC + 0x10, 0); // to local APIC 0
        self.mov_edx(port);
        self.emit(&[0xb0, READY, 0xee]); // mov al, READY; out dx, al
        let idle = self.here();
        self.emit(&[0xbc]); // mov esp, STACK
        self.emit(&(STACK as u32).to_le_bytes());
        self.emit(&[0xfb, 0xf4]); // sti; hlt
        self.jump(idle);
        for vector in 0x20..=0xf0 {
            let at = self.here();
            self.handlers.push((vector, at));
            self.mov_edx(port);
            self.emit(&[0xb0, vector, 0xee]); // mov al, vector; out dx, al
            self.store(LOCAL_APIC + 0xb0, 0); // end of interrupt
            self.jump(idle);
        }
    }

    /// `mov ebx, addr; mov dword [rbx], value`
    fn store(&mut self, addr: u32, value: u32) {
        self.emit(&[0xbb]);
        self.emit(&addr.to_le_bytes());
        self.emit(&[0xc7, 0x03]);
        self.emit(&value.to_le_bytes());
    }

    /// `jmp rel32`
    fn jump(&mut self, to: u64) {
        let from = self.here() + 5;
        self.emit(&[0xe9]);
        self.emit(&(to.wrapping_sub(from) as u32).to_le_bytes());
    }

    fn mov_rbx(&mut self, value: u64) {
        self.emit(&[0x48, 0xbb]);
        self.emit(&value.to_le_bytes());
    }

    fn mov_rax(&mut self, data: &[u8]) {
        let mut value = [0; 8];
        value[..data.len()].copy_from_slice(data);
        self.emit(&[0x48, 0xb8]);
        self.emit(&value);
    }

    fn mov_edx(&mut self, port: u16) {
        self.emit(&[0xba]);
        self.emit(&u32::from(port).to_le_bytes());
    }

    fn mov_esi(&mut self, at: u64) {
        self.emit(&[0xbe]);
        self.emit(&(at as u32).to_le_bytes());
    }

    fn mov_ecx(&mut self, count: usize) {
        self.emit(&[0xb9]);
        self.emit(&(count as u32).to_le_bytes());
    }
}

fn by_width<'a>(bytes: usize, one: &'a [u8], two: &'a [u8], four: &'a [u8], eight: &'a [u8]) -> &'a [u8] {
    match bytes {
        1 => one,
        2 => two,
        4 => four,
        8 => eight,
        _ => panic!("no instruction accesses {bytes} bytes"),
    }
}
