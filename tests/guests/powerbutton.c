#include "guest.h"

#define VECTOR 0x25

__attribute__((interrupt)) static void pressed(struct frame *frame)
{
    (void)frame;
    uint8_t events = inb(POWER + 4);
    uint8_t again = inb(POWER + 4);
    local_apic_end();
    if (!(events & 1)) {
        print("spurious\n");
        return;
    }
    print(again & 1 ? "button stuck\n" : "button\n");
    power_off();
}

void run(void)
{
    set_gate(VECTOR, pressed);
    load_idt();
    local_apic_on();
    route(5, VECTOR);
    print("ready\n");
}
