/* The board as the guests see it, and a little text output. General-purpose registers only. */
#ifndef GUEST_H
#define GUEST_H

#include <stdint.h>

#define SERIAL 0x3f8
#define POWER 0x600
#define IO_APIC 0xfec00000u
#define LOCAL_APIC 0xfee00000u
#define CODE_SELECTOR 0x10

static inline void outb(uint16_t port, uint8_t value) { __asm__ volatile("outb %0, %1" ::"a"(value), "Nd"(port) : "memory"); }
static inline uint8_t inb(uint16_t port)
{
    uint8_t value;
    __asm__ volatile("inb %1, %0" : "=a"(value) : "Nd"(port) : "memory");
    return value;
}
static inline void wrmsr(uint32_t index, uint64_t value)
{
    __asm__ volatile("wrmsr" ::"c"(index), "a"((uint32_t)value), "d"((uint32_t)(value >> 32)) : "memory");
}
static inline uint64_t rdtsc(void)
{
    uint32_t low, high;
    __asm__ volatile("rdtsc" : "=a"(low), "=d"(high)::"memory");
    return (uint64_t)high << 32 | low;
}
static inline void wait_for_interrupt(void) { __asm__ volatile("sti; hlt" ::: "memory"); }
static inline void interrupts_off(void) { __asm__ volatile("cli" ::: "memory"); }
static inline void interrupts_on(void) { __asm__ volatile("sti" ::: "memory"); }

static inline volatile uint32_t *mmio(uint64_t address) { return (volatile uint32_t *)address; }

/* boot.c: what was passed at boot. */
struct boot {
    uint64_t parameters;
    int pvh;
};
extern struct boot boot;
const char *cmdline(void);
uint64_t option(const char *name, uint64_t otherwise); /* "name=value", decimal or 0x */

/* text.c */
void put(char byte);
void print(const char *text);
void print_decimal(uint64_t value);
void print_hex(uint64_t value, int digits);
void print_field(const char *name, uint64_t value); /* " name=value" */

/* power.c */
_Noreturn void power_off(void);
_Noreturn void halt(void);

/* interrupt.c */
struct frame;
void set_gate(uint8_t vector, void (*handler)(struct frame *));
void load_idt(void);
void local_apic_on(void);
void local_apic_end(void);
void route(uint32_t gsi, uint8_t vector); /* edge, active high, to APIC 0 */

/* Starts another CPU in real mode at a page below 1 MiB. */
void start_cpu(uint32_t apic, uint32_t address);

/* Each guest's own. */
void run(void);

#endif
