/* Both entries of every guest. They end in main(rdi = boot structure, rsi = 1 if that is a PVH start_info).
   With FIRST_BYTE defined, that byte goes to the serial port before anything else. */

.macro first_byte
#ifdef FIRST_BYTE
    mov $0x3f8, %edx
    mov $FIRST_BYTE, %al
    out %al, %dx
#endif
.endm

.section .text.start, "ax"

/* Linux's 64-bit boot protocol: long mode, low 4 GiB mapped, rsi = boot_params. Its GDT has code at 0x10 and data at 0x18. */
.code64
.globl _start
_start:
    first_byte
    mov %rsi, %rdi
    xor %esi, %esi
    mov $stack_top, %esp
    call main
halt:
    sti
    hlt
    jmp halt

#ifdef PVH
/* PVH: 32-bit protected mode without paging, ebx = start_info. */
.code32
.globl _start_pvh
_start_pvh:
    first_byte
    mov $pml4, %eax
    mov %eax, %cr3
    mov $0x20, %eax             /* CR4.PAE */
    mov %eax, %cr4
    mov $0xc0000080, %ecx       /* EFER.LME */
    mov $0x100, %eax
    xor %edx, %edx
    wrmsr
    mov $0x80000011, %eax       /* CR0: PG, ET, PE */
    mov %eax, %cr0
    lgdt gdt_pointer
    ljmp $0x10, $long_mode
.code64
long_mode:
    mov $0x18, %eax
    mov %eax, %ds
    mov %eax, %es
    mov %eax, %ss
    mov %ebx, %edi
    mov $1, %esi
    mov $stack_top, %esp
    call main
    jmp halt

.section .note.Xen, "a"
    .align 4
    .long 4, 4, 18              /* name and descriptor size, XEN_ELFNOTE_PHYS32_ENTRY */
    .asciz "Xen"
    .long _start_pvh

.section .data
    .align 8
gdt:
    .quad 0, 0, 0x00af9b000000ffff, 0x00cf93000000ffff
gdt_pointer:
    .word . - gdt - 1
    .long gdt

    /* An identity map of the low 4 GiB, complete in the image: building it here would take emulated processors milliseconds. */
    .align 4096
pml4:
    .quad pdpt + 3
    .fill 511, 8, 0
pdpt:
    .quad directories + 3, directories + 0x1003, directories + 0x2003, directories + 0x3003
    .fill 508, 8, 0
directories:
    .set page, 0
    .rept 2048
    .quad page * 0x200000 + 0x83
    .set page, page + 1
    .endr
#endif

.section .bss
    .align 16
    .skip 16384
stack_top:

.section .note.GNU-stack, "", @progbits
