//! What a board looks like to the guest: memory map, ACPI, CPUID, boot registers.
