/* Output, power, boot parameters and interrupts for the guests. */
#include "guest.h"

struct boot boot;

void main(uint64_t parameters, uint64_t pvh)
{
    boot.parameters = parameters;
    boot.pvh = (int)pvh;
    run();
    halt();
}

void put(char byte) { outb(SERIAL, (uint8_t)byte); }

void print(const char *text)
{
    while (*text)
        put(*text++);
}

void print_decimal(uint64_t value)
{
    char digits[20];
    int count = 0;
    do {
        digits[count++] = (char)('0' + value % 10);
        value /= 10;
    } while (value);
    while (count)
        put(digits[--count]);
}

void print_hex(uint64_t value, int digits)
{
    while (digits--)
        put("0123456789abcdef"[value >> (4 * digits) & 15]);
}

void print_field(const char *name, uint64_t value)
{
    put(' ');
    print(name);
    put('=');
    print_decimal(value);
}

_Noreturn void halt(void)
{
    for (;;)
        wait_for_interrupt();
}

_Noreturn void power_off(void)
{
    outb(POWER, 0x20 | 5 << 2); /* SLP_EN, SLP_TYP of S5 */
    halt();
}

const char *cmdline(void)
{
    if (boot.pvh)
        return (const char *)*(uint64_t *)(boot.parameters + 24);
    return (const char *)(uint64_t)*(uint32_t *)(boot.parameters + 0x228);
}

static uint64_t number(const char *text)
{
    uint64_t value = 0, base = 10;
    if (text[0] == '0' && text[1] == 'x') {
        base = 16;
        text += 2;
    }
    for (;; text++) {
        uint64_t digit;
        if (*text >= '0' && *text <= '9')
            digit = (uint64_t)(*text - '0');
        else if (base == 16 && *text >= 'a' && *text <= 'f')
            digit = (uint64_t)(*text - 'a' + 10);
        else
            return value;
        value = value * base + digit;
    }
}

uint64_t option(const char *name, uint64_t otherwise)
{
    for (const char *at = cmdline(); *at;) {
        const char *n = name;
        while (*n && *at == *n)
            at++, n++;
        if (!*n && *at == '=')
            return number(at + 1);
        while (*at && *at != ' ')
            at++;
        while (*at == ' ')
            at++;
    }
    return otherwise;
}

/* Interrupt gates (Intel SDM vol 3 §6.14.1). */
static struct {
    uint16_t low, selector, kind, middle;
    uint32_t high, zero;
} idt[256];

void set_gate(uint8_t vector, void (*handler)(struct frame *))
{
    uint64_t address = (uint64_t)handler;
    idt[vector].low = (uint16_t)address;
    idt[vector].selector = CODE_SELECTOR;
    idt[vector].kind = 0x8e00;
    idt[vector].middle = (uint16_t)(address >> 16);
    idt[vector].high = (uint32_t)(address >> 32);
}

void load_idt(void)
{
    struct {
        uint16_t limit;
        uint64_t base;
    } __attribute__((packed)) pointer = {sizeof idt - 1, (uint64_t)idt};
    __asm__ volatile("lidt %0" ::"m"(pointer) : "memory");
}

/* LINT0 is masked: a host's 8259, which this board does not have, must not get through. "lint0=1" leaves it as it was at boot. */
void local_apic_on(void)
{
    if (!option("lint0", 0))
        *mmio(LOCAL_APIC + 0x350) = 0x10000;
    *mmio(LOCAL_APIC + 0xf0) = 0x1ff;
}

void local_apic_end(void) { *mmio(LOCAL_APIC + 0xb0) = 0; }

void route(uint32_t gsi, uint8_t vector)
{
    *mmio(IO_APIC) = 0x10 + 2 * gsi + 1;
    *mmio(IO_APIC + 0x10) = 0;
    *mmio(IO_APIC) = 0x10 + 2 * gsi;
    *mmio(IO_APIC + 0x10) = vector;
}

static void send(uint32_t apic, uint32_t command)
{
    *mmio(LOCAL_APIC + 0x310) = apic << 24;
    *mmio(LOCAL_APIC + 0x300) = command;
    while (*mmio(LOCAL_APIC + 0x300) & 1 << 12)
        ;
}

void start_cpu(uint32_t apic, uint32_t address)
{
    send(apic, 0x4500);                 /* INIT, assert */
    send(apic, 0x4600 | address >> 12); /* start-up */
}
