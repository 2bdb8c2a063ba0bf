#include "guest.h"

/* An access to where there is no memory makes KVM emulate the instruction, and its emulator has no popcnt. */
void run(void)
{
    uint64_t bits;
    print("bad instruction\n");
    __asm__ volatile("popcnt (%1), %0" : "=r"(bits) : "r"(0xdead0000ul) : "memory");
    print("survived\n");
}
