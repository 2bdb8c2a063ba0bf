#include "guest.h"

#define TRAMPOLINE 0x10000

/* The second CPU is in real mode when it starts: it jumps to the reset vector, as Linux does to reboot by the BIOS. */
void run(void)
{
    static const uint8_t jump[] = {0xea, 0xf0, 0xff, 0x00, 0xf0}; /* ljmp $0xf000, $0xfff0 */
    for (unsigned i = 0; i < sizeof jump; i++)
        ((volatile uint8_t *)TRAMPOLINE)[i] = jump[i];
    print("reset by bios\n");
    local_apic_on();
    start_cpu(1, TRAMPOLINE);
}
