/* Drives two virtio disks by polling, one sector at a time, as it is told by serial input: a digit that names the disk, and a letter.
   Each command is answered by a line, but only when what it asks for has happened. */
#include "guest.h"

#define SLOT 0xd0000000u /* virtio-mmio slot 0; the next is 4 KiB further */
#define SIZE 8
#define STATUS 0x70
#define NEXT 1
#define WRITE 2

struct descriptor {
    uint64_t address;
    uint32_t length;
    uint16_t flags, next;
};

static struct disk {
    _Alignas(4096) struct descriptor table[SIZE];
    _Alignas(64) struct {
        uint16_t flags, index, ring[SIZE], event;
    } available;
    _Alignas(64) volatile struct {
        uint16_t flags, index;
        struct {
            uint32_t id, length;
        } ring[SIZE];
        uint16_t event;
    } used;
    struct {
        uint32_t kind, reserved;
        uint64_t sector;
    } header;
    uint8_t data[512];
    volatile uint8_t status;
    uint16_t done;
} disks[2];

static volatile uint32_t *reg(int number, uint32_t offset) { return mmio(SLOT + 0x1000u * (uint32_t)number + offset); }

static void address(int number, uint32_t offset, const volatile void *at)
{
    *reg(number, offset) = (uint32_t)(uint64_t)at;
    *reg(number, offset + 4) = (uint32_t)((uint64_t)at >> 32);
}

/* Resets, and takes queue 0 with no feature but that of version 1. */
static void begin(int number)
{
    struct disk *disk = &disks[number];
    *reg(number, STATUS) = 0;
    while (*reg(number, STATUS))
        ;
    disk->available.index = disk->done = 0;
    disk->used.index = 0;
    *reg(number, STATUS) = 1;
    *reg(number, STATUS) = 3;
    for (uint32_t half = 0; half < 2; half++) {
        *reg(number, 0x24) = half;
        *reg(number, 0x20) = half;
    }
    *reg(number, STATUS) = 11;
    *reg(number, 0x30) = 0;
    *reg(number, 0x38) = SIZE;
    address(number, 0x80, disk->table);
    address(number, 0x90, &disk->available);
    address(number, 0xa0, &disk->used);
    *reg(number, 0x44) = 1;
    *reg(number, STATUS) = 15;
}

/* One request for sector 0. */
static void send(int number, uint32_t kind)
{
    struct disk *disk = &disks[number];
    disk->header.kind = kind;
    disk->header.sector = 0;
    disk->status = 0xee;
    disk->table[0] = (struct descriptor){(uint64_t)&disk->header, 16, NEXT, 1};
    disk->table[1] = (struct descriptor){(uint64_t)disk->data, 512, (uint16_t)(kind ? NEXT : NEXT | WRITE), 2};
    disk->table[2] = (struct descriptor){(uint64_t)&disk->status, 1, WRITE, 0};
    disk->available.ring[disk->available.index % SIZE] = 0;
    __asm__ volatile("" ::: "memory");
    disk->available.index++;
    *reg(number, 0x50) = 0;
    while (disk->used.index == disk->done)
        ;
    disk->done++;
}

static char key(void)
{
    while (!(inb(SERIAL + 5) & 1))
        ;
    return (char)inb(SERIAL);
}

void run(void)
{
    begin(0);
    begin(1);
    print("ready\n");
    for (;;) {
        char digit = key();
        int number = digit - '0';
        if (digit == 'q')
            power_off();
        if (digit == 'c') { /* the century, by the clock */
            outb(0x70, 0x32);
            print("clock");
            print_field("century", inb(0x71));
            print("\n");
        }
        if (number < 0 || number > 1)
            continue;
        char letter = key();
        print("disk");
        switch (letter) {
        case 'b':
            begin(number);
            break;
        case 'w':
            for (int i = 0; i < 512; i++)
                disks[number].data[i]++;
            send(number, 1);
            break;
        case 'r':
            send(number, 0);
            break;
        }
        print_field("number", (uint64_t)number);
        print_field("device", *reg(number, STATUS));
        print_field("status", disks[number].status);
        print_field("first", disks[number].data[0]);
        print("\n");
    }
}
