/* Times its own accesses to devices, with the TSC, and dumps every sample to the serial port: little-endian cycles of 32 bits.
   count=N  samples of each kind           idle=US  busy without any access before each
   warm=N   accesses before the first      kinds=B  1 read, 2 write, 4 virtio register
   port=P   read    scratch=P  written
   load=N   of a second CPU: 0 none, 1 computes, 2 reads loadport=P */
#include "guest.h"

/* virtio-mmio's QueueSel (Virtio 1.3 §4.2.2) of the first slot: a register whose write does nothing else. */
#define QUEUE_SEL 0xd0000030

#define MOST 3000
static uint32_t samples[MOST];

/* kvm-clock's page (Linux Documentation/virt/kvm/x86/msr.rst): how to turn TSC cycles into nanoseconds. */
static volatile struct {
    uint32_t version, pad;
    uint64_t tsc, system;
    uint32_t multiplier;
    int8_t shift;
    uint8_t flags, pad2[2];
} __attribute__((aligned(64))) clock;

/* Real-mode code of the second CPU: counts what it does at 0x7ff0. */
extern const uint8_t trampoline[], trampoline_end[];
__asm__(".section .text\n"
        ".code16\n"
        "trampoline:\n"
        "  cli\n"
        "  xor %ax, %ax\n"
        "  mov %ax, %ds\n"
        "  mov 0x7fe2, %dx\n"
        "  movw $1, 0x7ff8\n"
        "  cmpw $2, 0x7fe0\n"
        "  je 2f\n"
        "1: incl 0x7ff0\n"
        "  jmp 1b\n"
        "2: in %dx, %al\n"
        "  incl 0x7ff0\n"
        "  jmp 2b\n"
        "trampoline_end:\n"
        ".code64\n");

#define TRAMPOLINE 0x10000
#define LOAD ((volatile uint16_t *)0x7fe0)
#define LOAD_PORT ((volatile uint16_t *)0x7fe2)
#define DONE ((volatile uint32_t *)0x7ff0)
#define STARTED ((volatile uint16_t *)0x7ff8)

static void start_load(uint16_t load)
{
    uint8_t *target = (uint8_t *)TRAMPOLINE;
    for (const uint8_t *from = trampoline; from < trampoline_end;)
        *target++ = *from++;
    *LOAD = load;
    *LOAD_PORT = (uint16_t)option("loadport", 0x64);
    *DONE = 0;
    *STARTED = 0;
    local_apic_on();
    start_cpu(1, TRAMPOLINE);
    while (!*STARTED)
        __asm__ volatile("pause");
}

static uint64_t count, warm, idle;
static uint16_t port, scratch;

static void access(int kind, uint64_t value)
{
    if (kind == 0)
        inb(port);
    else if (kind == 1)
        outb(scratch, (uint8_t)value);
    else
        *mmio(QUEUE_SEL) = 0;
}

/* What the second CPU did while accesses were timed, and for how many cycles. */
static uint64_t load_done, load_cycles;

static void measure(int kind, const char *name)
{
    uint64_t began = rdtsc();
    uint32_t done = *DONE;
    for (uint64_t at = 0; at < warm + count; at++) {
        uint64_t until = rdtsc() + idle;
        while (idle && rdtsc() < until)
            ;
        uint64_t from = rdtsc();
        access(kind, at);
        uint64_t took = rdtsc() - from;
        if (at >= warm)
            samples[at - warm] = took > 0xffffffff ? 0xffffffff : (uint32_t)took;
    }
    load_done += *DONE - done;
    load_cycles += rdtsc() - began;
    print("samples ");
    print(name);
    print_field("count", count);
    put('\n');
    const uint32_t *from = samples;
    uint64_t bytes = count * sizeof *samples;
    __asm__ volatile("rep outsb" : "+S"(from), "+c"(bytes) : "d"(SERIAL) : "memory");
}

void run(void)
{
    count = option("count", 1000);
    if (count == 0 || count > MOST)
        count = MOST;
    warm = option("warm", 100);
    port = (uint16_t)option("port", SERIAL + 5);
    scratch = (uint16_t)option("scratch", SERIAL + 7);
    uint64_t kinds = option("kinds", 7), load = option("load", 0);
    wrmsr(0x4b564d01, (uint64_t)&clock | 1);
    /* Nanoseconds are cycles << shift, * multiplier, >> 32. */
    uint64_t shifted = (option("idle", 0) * 1000 << 32) / clock.multiplier;
    idle = clock.shift >= 0 ? shifted >> clock.shift : shifted << -clock.shift;
    print("clock");
    print_field("multiplier", clock.multiplier);
    print_field("shift_plus_64", (uint64_t)(clock.shift + 64));
    put('\n');
    if (load)
        start_load((uint16_t)load);
    if (kinds & 1)
        measure(0, "read");
    if (kinds & 2)
        measure(1, "write");
    if (kinds & 4)
        measure(2, "virtio");
    print("load");
    print_field("done", load_done);
    print_field("cycles", load_cycles);
    put('\n');
    power_off();
}
