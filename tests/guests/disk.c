#include "virtio.h"

#define SECTOR 512
#define IN 0
#define OUT 1

static struct {
    uint32_t type, reserved;
    uint64_t sector;
} header[2];
static uint64_t data[2][SECTOR / 8];
static volatile uint8_t status[2];

/* One sector by each queue, at a time. */
static uint64_t pass(uint32_t type, uint64_t round)
{
    uint64_t wrong = 0;
    for (uint32_t queue = 0; queue < 2; queue++) {
        uint16_t direction = type == IN ? WRITABLE : 0;
        struct piece pieces[] = {{&header[queue], 16, 0}, {data[queue], SECTOR, direction}, {&status[queue], 1, WRITABLE}};
        header[queue].type = type;
        header[queue].sector = 2 * (round % 64) + queue;
        status[queue] = 0xff;
        virtio_give(queue, pieces, 3);
    }
    for (uint32_t queue = 0; queue < 2; queue++)
        wrong += virtio_take(queue) != (type == IN ? SECTOR + 1 : 1) || status[queue] != 0;
    return wrong;
}

/* What went wrong first, for people: the round and what was done in it. */
static uint64_t check(uint64_t wrong, uint64_t round, const char *what)
{
    static uint64_t told;
    if (wrong && !told++) {
        print("first");
        print_field(what, round);
        print("\n");
    }
    return wrong;
}

static uint64_t word(uint64_t round, uint32_t queue, uint64_t at) { return (round << 32 | queue << 16 | at) * 0x9e3779b97f4a7c15; }

void run(void)
{
    uint64_t rounds = option("rounds", 100), wrong = 0, round = 0, every = option("every", 16);
    virtio_find();
    print("ready\n");
    /* Until a key is pressed, at most. */
    for (; round < rounds && !(inb(SERIAL + 5) & 1); round++) {
        if (round % every == 0)
            wrong += check(!virtio_begin(2), round, "begin");
        for (uint32_t queue = 0; queue < 2; queue++)
            for (uint64_t at = 0; at < SECTOR / 8; at++)
                data[queue][at] = word(round, queue, at);
        wrong += check(pass(OUT, round), round, "write");
        for (uint32_t queue = 0; queue < 2; queue++)
            for (uint64_t at = 0; at < SECTOR / 8; at++)
                data[queue][at] = 0;
        wrong += check(pass(IN, round), round, "read");
        for (uint32_t queue = 0; queue < 2; queue++)
            for (uint64_t at = 0; at < SECTOR / 8; at++)
                wrong += check(data[queue][at] != word(round, queue, at), round, "data");
        virtio_touch();
        wrong += check(virtio_read(VIRTIO_MAGIC) != 0x74726976 || virtio_read(VIRTIO_DEVICE_ID) != 2, round, "registers");
    }
    print("disk");
    print_field("rounds", round);
    print_field("wrong", wrong);
    print("\n");
    power_off();
}
