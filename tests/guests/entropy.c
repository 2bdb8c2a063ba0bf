#include "virtio.h"

static volatile uint64_t bytes[8];

void run(void)
{
    uint64_t rounds = option("rounds", 100), causes = option("causes", 0), wrong = 0;
    virtio_find();
    print("ready\n");
    for (uint64_t round = 0; round < rounds; round++) {
        struct piece piece = {bytes, sizeof bytes, WRITABLE};
        if (round % 16 == 0) {
            wrong += !virtio_begin(1);
            if (causes)
                wrong += virtio_read(VIRTIO_INTERRUPT_STATUS) != 0;
        }
        for (uint32_t at = 0; at < 8; at++)
            bytes[at] = 0;
        virtio_give(0, &piece, 1);
        wrong += virtio_take(0) != sizeof bytes;
        for (uint32_t at = 0; at < 8; at++)
            wrong += bytes[at] == 0;
        if (causes) {
            /* Used buffers stay pending when they alone are acknowledged. */
            while (!virtio_read(VIRTIO_INTERRUPT_STATUS))
                ;
            virtio_write(VIRTIO_INTERRUPT_ACK, 1);
            wrong += virtio_read(VIRTIO_INTERRUPT_STATUS) != 1;
            virtio_write(VIRTIO_INTERRUPT_ACK, 3);
            wrong += virtio_read(VIRTIO_INTERRUPT_STATUS) != 0;
        }
        virtio_touch();
        wrong += virtio_read(VIRTIO_MAGIC) != 0x74726976 || virtio_read(VIRTIO_DEVICE_ID) != 4;
    }
    print("entropy");
    print_field("rounds", rounds);
    print_field("wrong", wrong);
    print("\n");
    power_off();
}
