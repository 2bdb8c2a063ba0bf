/* A driver for one virtio device over MMIO (Virtio 1.3 §4.2): two split queues, interrupts. Register offsets as in §4.2.2. */
#ifndef VIRTIO_H
#define VIRTIO_H

#include "guest.h"

#define VIRTIO_MAGIC 0x000
#define VIRTIO_DEVICE_ID 0x008
#define VIRTIO_DRIVER_FEATURES 0x020
#define VIRTIO_DRIVER_FEATURES_SEL 0x024
#define VIRTIO_QUEUE_SEL 0x030
#define VIRTIO_QUEUE_SIZE 0x038
#define VIRTIO_QUEUE_READY 0x044
#define VIRTIO_QUEUE_NOTIFY 0x050
#define VIRTIO_INTERRUPT_STATUS 0x060
#define VIRTIO_INTERRUPT_ACK 0x064
#define VIRTIO_STATUS 0x070
#define VIRTIO_QUEUE_DESC 0x080
#define VIRTIO_QUEUE_DRIVER 0x090
#define VIRTIO_QUEUE_DEVICE 0x0a0

#define VIRTIO_VECTOR 0x30
#define QUEUE_SIZE 8
#define WRITABLE 2

struct queue {
    struct {
        uint64_t address;
        uint32_t length;
        uint16_t flags, next;
    } table[QUEUE_SIZE] __attribute__((aligned(16)));
    struct {
        uint16_t flags, index, ring[QUEUE_SIZE], used_event;
    } available;
    struct {
        uint16_t flags, index;
        struct {
            uint32_t head, length;
        } ring[QUEUE_SIZE];
        uint16_t available_event;
    } used __attribute__((aligned(4)));
    uint16_t seen;
};

struct piece {
    const volatile void *address;
    uint32_t length;
    uint16_t flags;
};

static volatile struct queue queues[2];
static uint64_t virtio;

static uint32_t virtio_read(uint32_t at) { return *mmio(virtio + at); }
static void virtio_write(uint32_t at, uint32_t value) { *mmio(virtio + at) = value; }

__attribute__((interrupt)) static void virtio_interrupt(struct frame *frame)
{
    (void)frame;
    virtio_write(VIRTIO_INTERRUPT_ACK, virtio_read(VIRTIO_INTERRUPT_STATUS));
    local_apic_end();
}

/* Accesses that the device's worker has to answer; some reads are answered without it. */
static void virtio_touch(void)
{
    for (int count = 0; count < 3; count++)
        virtio_write(VIRTIO_QUEUE_SEL, 0);
}

/* The device in slot "slot=N" (0), with its interrupt. */
static void virtio_find(void)
{
    static const uint8_t gsis[] = {6, 7, 9, 10, 11, 12};
    uint64_t slot = option("slot", 0) % sizeof gsis;
    virtio = 0xd0000000 + 0x1000 * slot;
    set_gate(VIRTIO_VECTOR, virtio_interrupt);
    load_idt();
    local_apic_on();
    route(gsis[slot], VIRTIO_VECTOR);
}

static void virtio_place(uint32_t at, const volatile void *area)
{
    virtio_write(at, (uint32_t)(uint64_t)area);
    virtio_write(at + 4, (uint32_t)((uint64_t)area >> 32));
}

/* Resets the device and begins anew, with VIRTIO_F_VERSION_1 alone; whether it agrees. */
static int virtio_begin(uint32_t count)
{
    virtio_write(VIRTIO_STATUS, 0);
    while (virtio_read(VIRTIO_STATUS))
        ;
    virtio_write(VIRTIO_STATUS, 1 | 2);
    virtio_write(VIRTIO_DRIVER_FEATURES_SEL, 0);
    virtio_write(VIRTIO_DRIVER_FEATURES, 0);
    virtio_write(VIRTIO_DRIVER_FEATURES_SEL, 1);
    virtio_write(VIRTIO_DRIVER_FEATURES, 1);
    virtio_write(VIRTIO_STATUS, 1 | 2 | 8);
    for (uint32_t number = 0; number < count; number++) {
        volatile struct queue *queue = &queues[number];
        for (uint32_t at = 0; at < sizeof *queue; at++)
            ((volatile uint8_t *)queue)[at] = 0;
        virtio_write(VIRTIO_QUEUE_SEL, number);
        virtio_write(VIRTIO_QUEUE_SIZE, QUEUE_SIZE);
        virtio_place(VIRTIO_QUEUE_DESC, queue->table);
        virtio_place(VIRTIO_QUEUE_DRIVER, &queue->available);
        virtio_place(VIRTIO_QUEUE_DEVICE, &queue->used);
        virtio_write(VIRTIO_QUEUE_READY, 1);
    }
    virtio_write(VIRTIO_STATUS, 1 | 2 | 8 | 4);
    return virtio_read(VIRTIO_STATUS) == 15;
}

/* Makes one chain available and kicks. */
static void virtio_give(uint32_t number, const struct piece *pieces, uint16_t count)
{
    volatile struct queue *queue = &queues[number];
    for (uint16_t at = 0; at < count; at++) {
        queue->table[at].address = (uint64_t)pieces[at].address;
        queue->table[at].length = pieces[at].length;
        queue->table[at].flags = pieces[at].flags | (at + 1 < count);
        queue->table[at].next = at + 1;
    }
    queue->available.ring[queue->available.index % QUEUE_SIZE] = 0;
    queue->available.index++;
    virtio_write(VIRTIO_QUEUE_NOTIFY, number);
}

/* Sleeps until an interrupt tells that the chain is back: how many bytes were written, or all ones if anything else is back. */
static uint32_t virtio_take(uint32_t number)
{
    volatile struct queue *queue = &queues[number];
    interrupts_off();
    while (queue->used.index == queue->seen) {
        wait_for_interrupt();
        interrupts_off();
    }
    interrupts_on();
    uint32_t at = queue->seen++ % QUEUE_SIZE;
    int alone = queue->used.index == queue->seen && queue->used.ring[at].head == 0;
    return alone ? queue->used.ring[at].length : ~0u;
}

#endif
