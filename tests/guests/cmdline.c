#include "guest.h"

static uint32_t u32(uint64_t address) { return *(volatile uint32_t *)address; }
static uint64_t u64(uint64_t address) { return *(volatile uint64_t *)address; }

static void range(const char *what, uint64_t address, uint64_t bytes, uint32_t kind)
{
    print(what);
    print(" 0x");
    print_hex(address, 10);
    print(" 0x");
    print_hex(bytes, 10);
    print_field("kind", kind);
    put('\n');
}

static void initrd(uint64_t address, uint64_t bytes)
{
    uint32_t sum = 0;
    for (uint64_t i = 0; i < bytes; i++)
        sum += *(uint8_t *)(address + i);
    range("initrd", address, bytes, sum);
}

static void by_boot_params(void)
{
    uint64_t page = boot.parameters, seed = u64(page + 0x250);
    initrd(u32(page + 0x218), u32(page + 0x21c));
    for (uint64_t i = 0; i < *(uint8_t *)(page + 0x1e8); i++) {
        uint64_t line = page + 0x2d0 + 20 * i;
        range("ram", u64(line), u64(line + 8), u32(line + 16));
    }
    range("rsdp", u64(page + 0x70), 36, 0);
    range("seed", seed, u32(seed + 12), u32(seed + 8));
}

static void by_start_info(void)
{
    uint64_t info = boot.parameters;
    if (u32(info + 12))
        initrd(u64(u64(info + 16)), u64(u64(info + 16) + 8));
    else
        initrd(0, 0);
    for (uint64_t i = 0; i < u32(info + 48); i++) {
        uint64_t line = u64(info + 40) + 24 * i;
        range("ram", u64(line), u64(line + 8), u32(line + 16));
    }
    range("rsdp", u64(info + 32), 36, 0);
}

void run(void)
{
    print(boot.pvh ? "pvh: " : "linux64: ");
    print(cmdline());
    put('\n');
    if (boot.pvh)
        by_start_info();
    else
        by_boot_params();
    power_off();
}
