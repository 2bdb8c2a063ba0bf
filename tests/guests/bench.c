#include "guest.h"

#define MOST 10000
static uint32_t samples[MOST];

/* kvm-clock's page (Linux Documentation/virt/kvm/x86/msr.rst): how to turn TSC cycles into nanoseconds. */
static volatile struct {
    uint32_t version, pad;
    uint64_t tsc, system;
    uint32_t multiplier;
    int8_t shift;
    uint8_t flags, pad2[2];
} __attribute__((aligned(64))) clock;

static uint64_t nanoseconds(uint64_t cycles)
{
    cycles = clock.shift >= 0 ? cycles << clock.shift : cycles >> -clock.shift;
    return cycles * clock.multiplier >> 32;
}

static void sort(uint64_t count)
{
    for (uint64_t gap = count / 2; gap; gap = gap == 2 ? 1 : gap * 5 / 11)
        for (uint64_t i = gap; i < count; i++) {
            uint32_t value = samples[i];
            uint64_t at = i;
            for (; at >= gap && samples[at - gap] > value; at -= gap)
                samples[at] = samples[at - gap];
            samples[at] = value;
        }
}

static void report(const char *what, uint64_t count)
{
    sort(count);
    uint64_t p50 = samples[count / 2], p99 = samples[count * 99 / 100];
    print(what);
    print_field("p50_cycles", p50);
    print_field("p99_cycles", p99);
    print_field("min_cycles", samples[0]);
    print_field("p50_ns", nanoseconds(p50));
    print_field("p99_ns", nanoseconds(p99));
    print_field("min_ns", nanoseconds(samples[0]));
    put('\n');
}

void run(void)
{
    uint64_t count = option("count", 1000);
    uint16_t port = (uint16_t)option("port", SERIAL + 5), scratch = (uint16_t)option("scratch", SERIAL + 7);
    if (count == 0 || count > MOST)
        count = MOST;
    wrmsr(0x4b564d01, (uint64_t)&clock | 1);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t from = rdtsc();
        samples[i] = (uint32_t)(rdtsc() - from);
    }
    report("baseline", count);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t from = rdtsc();
        inb(port);
        samples[i] = (uint32_t)(rdtsc() - from);
    }
    report("read", count);
    for (uint64_t i = 0; i < count; i++) {
        uint64_t from = rdtsc();
        outb(scratch, (uint8_t)i);
        samples[i] = (uint32_t)(rdtsc() - from);
    }
    report("write", count);
    power_off();
}
