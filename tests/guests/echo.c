#include "guest.h"

#define VECTOR 0x24
#define CTRL_D 4

__attribute__((interrupt)) static void received(struct frame *frame)
{
    (void)frame;
    while (inb(SERIAL + 5) & 1) {
        uint8_t byte = inb(SERIAL);
        if (byte == CTRL_D)
            power_off();
        outb(SERIAL, byte);
    }
    local_apic_end();
}

void run(void)
{
    set_gate(VECTOR, received);
    load_idt();
    local_apic_on();
    route(4, VECTOR);
    outb(SERIAL + 4, 0x0b); /* DTR, RTS, OUT2 */
    outb(SERIAL + 1, 1);    /* received data available */
    print("ready\n");
}
