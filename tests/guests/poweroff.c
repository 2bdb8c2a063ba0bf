#include "guest.h"

void run(void)
{
    print("power off\n");
    power_off();
}
