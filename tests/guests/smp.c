#include "guest.h"

/* Real-mode code for the other CPUs: prints "cpu NN\n" with the APIC id of CPUID leaf 1, sets a flag, halts. */
extern const uint8_t trampoline[], trampoline_end[];
__asm__(".section .text\n"
        ".code16\n"
        "trampoline:\n"
        "  cli\n"
        "  xor %ax, %ax\n"
        "  mov %ax, %ds\n"
        "  mov $0x3f8, %dx\n"
        "  mov $'c', %al\n out %al, %dx\n"
        "  mov $'p', %al\n out %al, %dx\n"
        "  mov $'u', %al\n out %al, %dx\n"
        "  mov $' ', %al\n out %al, %dx\n"
        "  mov $1, %eax\n"
        "  cpuid\n"
        "  mov $0x3f8, %dx\n"
        "  shr $24, %ebx\n"
        "  mov %bx, %ax\n"
        "  mov $10, %cl\n"
        "  div %cl\n"
        "  mov %ah, %bl\n"
        "  add $'0', %al\n out %al, %dx\n"
        "  mov %bl, %al\n"
        "  add $'0', %al\n out %al, %dx\n"
        "  mov $'\\n', %al\n out %al, %dx\n"
        "  movw $1, 0x7ff8\n"
        "1: hlt\n"
        "  jmp 1b\n"
        "trampoline_end:\n"
        ".code64\n");

#define TRAMPOLINE 0x10000
#define FLAG ((volatile uint16_t *)0x7ff8)

static uint32_t u32(uint64_t address) { return *(volatile uint32_t *)address; }
static uint64_t u64(uint64_t address) { return *(volatile uint64_t *)address; }

/* The MADT, by way of RSDP and XSDT. */
static uint64_t find_madt(void)
{
    uint64_t xsdt = u64(0xe0000 + 24);
    for (uint64_t at = xsdt + 36; at < xsdt + u32(xsdt + 4); at += 8)
        if (u32(u64(at)) == 0x43495041) /* "APIC" */
            return u64(at);
    print("no madt\n");
    power_off();
}

static void start(uint32_t apic)
{
    *FLAG = 0;
    start_cpu(apic, TRAMPOLINE);
    uint64_t give_up = rdtsc() + 20000000000ull;
    while (!*FLAG && rdtsc() < give_up)
        __asm__ volatile("pause");
    if (!*FLAG)
        print("does not answer\n");
}

void run(void)
{
    uint8_t *target = (uint8_t *)TRAMPOLINE;
    for (const uint8_t *from = trampoline; from < trampoline_end;)
        *target++ = *from++;
    local_apic_on();
    uint64_t madt = find_madt(), end = madt + u32(madt + 4);
    uint32_t own = *mmio(LOCAL_APIC + 0x20) >> 24, count = 0;
    for (uint64_t at = madt + 44; at < end; at += *(uint8_t *)(at + 1)) {
        if (*(uint8_t *)at != 0)
            continue;
        uint32_t apic = *(uint8_t *)(at + 3);
        count++;
        if (apic == own) {
            print("cpu ");
            put((char)('0' + apic / 10));
            put((char)('0' + apic % 10));
            put('\n');
        } else {
            start(apic);
        }
    }
    print("cpus");
    print_field("count", count);
    put('\n');
    power_off();
}
