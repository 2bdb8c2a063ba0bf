//! ACPI power registers: power-off, reset, power button.
