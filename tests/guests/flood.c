#include "guest.h"

static char line[] = "0000000 the quick brown fox jumps over the lazy dog, and again it jumps\n";

/* Adds one to the number at the start of the line, digit by digit. */
static void next(void)
{
    for (int at = 6; at >= 0 && ++line[at] > '9'; at--)
        line[at] = '0';
}

void run(void)
{
    uint64_t lines = option("lines", 1000), string = option("string", 0);
    while (lines--) {
        next();
        if (string) {
            const char *from = line;
            uint64_t count = sizeof line - 1;
            __asm__ volatile("cld; rep outsb" : "+S"(from), "+c"(count) : "d"(SERIAL) : "memory");
        } else {
            print(line);
        }
    }
    power_off();
}
