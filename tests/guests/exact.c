#include "guest.h"

#define BYTES 8

/* Each byte goes into the serial port's own receiver once, and comes out of it once. */
static uint64_t serial(uint64_t round)
{
    uint64_t wrong = 0;
    outb(SERIAL + 4, 0x10); /* loopback */
    outb(SERIAL + 2, 0x07); /* FIFOs on and empty */
    for (uint64_t at = 0; at < BYTES; at++)
        outb(SERIAL, (uint8_t)(round * BYTES + at));
    for (uint64_t at = 0; at < BYTES; at++)
        wrong += !(inb(SERIAL + 5) & 1) || inb(SERIAL) != (uint8_t)(round * BYTES + at);
    wrong += inb(SERIAL + 5) & 1;
    outb(SERIAL + 2, 0);
    outb(SERIAL + 4, 0);
    return wrong;
}

/* The i8042's output buffer is full after the command that fills it, and empty after one read. */
static uint64_t keyboard(uint64_t round)
{
    outb(0x64, 0xd2);
    outb(0x60, (uint8_t)round);
    uint64_t wrong = !(inb(0x64) & 1) || inb(0x60) != (uint8_t)round;
    return wrong + (inb(0x64) & 1);
}

/* Two bytes of the RTC's memory, each behind an index that is another access. */
static uint64_t clock(uint64_t round)
{
    uint64_t wrong = 0;
    for (uint8_t at = 0x40; at < 0x42; at++) {
        outb(0x70, at);
        outb(0x71, (uint8_t)(round + at));
    }
    for (uint8_t at = 0x40; at < 0x42; at++) {
        outb(0x70, at);
        wrong += inb(0x71) != (uint8_t)(round + at);
    }
    return wrong;
}

void run(void)
{
    uint64_t rounds = option("rounds", 100), wrong = 0;
    print("ready\n");
    for (uint64_t round = 0; round < rounds; round++)
        wrong += serial(round) + keyboard(round) + clock(round);
    print("exact");
    print_field("rounds", rounds);
    print_field("wrong", wrong);
    print("\n");
    power_off();
}
