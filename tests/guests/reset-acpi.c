#include "guest.h"

void run(void)
{
    print("reset by acpi\n");
    outb(POWER + 2, 1);
}
