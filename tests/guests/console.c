#include "virtio.h"

static char line[] = "0000000 by the virtio console\n";

static void next(void)
{
    for (int at = 6; at >= 0 && ++line[at] > '9'; at--)
        line[at] = '0';
}

void run(void)
{
    uint64_t lines = option("lines", 100), wrong = 0;
    virtio_find();
    wrong += !virtio_begin(2);
    print("ready\n");
    for (uint64_t count = 0; count < lines; count++) {
        struct piece piece = {line, sizeof line - 1, 0};
        next();
        virtio_give(1, &piece, 1);
        wrong += virtio_take(1) != 0;
        virtio_touch();
        wrong += virtio_read(VIRTIO_MAGIC) != 0x74726976 || virtio_read(VIRTIO_DEVICE_ID) != 3;
    }
    print("console");
    print_field("rounds", lines);
    print_field("wrong", wrong);
    print("\n");
    power_off();
}
