/* Asks the clock's port for what it is told to by serial input: 'r' one read, 'l' five thousand, 'w' a write, 'q' the end. Each is
   answered by a line, once the device has answered. */
#include "guest.h"

#define INDEX 0x70
#define DATA 0x71
#define LOOPS 5000

static uint8_t typed(void)
{
    while (!(inb(SERIAL + 5) & 1))
        ;
    return inb(SERIAL);
}

void run(void)
{
    print("ready\n");
    for (;;) {
        uint64_t sum = 0;
        switch (typed()) {
        case 'r':
            print("read");
            print_field("value", inb(DATA));
            break;
        case 'l':
            for (int i = 0; i < LOOPS; i++)
                sum += inb(DATA);
            print("loop");
            print_field("sum", sum);
            break;
        case 'w':
            outb(INDEX, 0x0a);
            print("wrote");
            break;
        case 'q':
            power_off();
        default:
            continue;
        }
        put('\n');
    }
}
