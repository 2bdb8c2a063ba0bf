#include "guest.h"

static uint8_t cmos(uint8_t index)
{
    outb(0x70, index);
    return inb(0x71);
}

/* "rtc 20yy-mm-dd hh:mm:ss weekday=w a=.. b=.. c=.. d=.." with the registers as they are (BCD or binary is in b). */
void run(void)
{
    static const uint8_t order[] = {0x32, 0x09, 0x08, 0x07, 0x04, 0x02, 0x00};
    static const char after[] = {0, '-', '-', ' ', ':', ':', 0};
    while (cmos(0x0a) & 0x80)
        ;
    print("rtc ");
    for (unsigned i = 0; i < sizeof order; i++) {
        print_hex(cmos(order[i]), 2);
        if (after[i])
            put(after[i]);
    }
    print(" weekday=");
    print_hex(cmos(6), 2);
    for (uint8_t i = 0; i < 4; i++) {
        put(' ');
        put((char)('a' + i));
        put('=');
        print_hex(cmos((uint8_t)(0x0a + i)), 2);
    }
    put('\n');
    power_off();
}
