#include "guest.h"

#define VECTOR 0x40
static volatile uint64_t ticks;

__attribute__((interrupt)) static void tick(struct frame *frame)
{
    (void)frame;
    ticks++;
    local_apic_end();
}

/* The local APIC's timer, periodic: the only timer that a board without PIT has at start. */
void run(void)
{
    uint64_t count = option("count", 10);
    set_gate(VECTOR, tick);
    load_idt();
    local_apic_on();
    *mmio(LOCAL_APIC + 0x3e0) = 0xb;               /* divide by 1 */
    *mmio(LOCAL_APIC + 0x320) = VECTOR | 1 << 17;  /* periodic */
    *mmio(LOCAL_APIC + 0x380) = 10000000;          /* 10 ms of KVM's 1 GHz bus clock */
    while (ticks < count)
        wait_for_interrupt();
    print("ticks");
    print_field("count", ticks);
    put('\n');
    power_off();
}
