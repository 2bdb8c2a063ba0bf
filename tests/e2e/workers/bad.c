/* Workers that a VM must not take: they are compiled with one of CRASH, HANG, OLD, OTHER, REJECT, MUTE and DIE. Of the control
   socket's messages they know the first bytes: Hello is 0, major, minor, 1, device; Refused is 2, length, text. */
#define _GNU_SOURCE
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

#define SERIAL 0
#define RTC 1

static __attribute__((unused)) void say(const char *bytes, size_t length)
{
    struct iovec piece = { (void *)bytes, length };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1 };
    sendmsg(3, &message, MSG_NOSIGNAL | MSG_DONTWAIT);
}

static __attribute__((unused)) void hear(void)
{
    static char space[4096], control[4096];
    struct iovec piece = { space, sizeof space };
    struct msghdr message = { .msg_iov = &piece, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control };
    if (recvmsg(3, &message, MSG_CMSG_CLOEXEC) <= 0)
        _exit(2);
}

static __attribute__((unused)) void greet(char major, char device)
{
    say((char[]){ 0, major, 0, 1, device }, 5);
}

static __attribute__((unused)) void crash(void)
{
    __builtin_trap();
}

int main(void)
{
#if defined CRASH
    crash();
#elif defined OLD
    greet(1, SERIAL);
#elif defined OTHER
    greet(2, RTC);
#elif defined REJECT
    greet(2, SERIAL);
    hear();
    say((char[]){ 2, 5, 'n', 'e', 'v', 'e', 'r' }, 7);
    return 1;
#elif defined DIE
    greet(2, SERIAL);
    hear();
    crash();
#elif defined MUTE
    greet(2, SERIAL);
#elif !defined HANG
#error "which one?"
#endif
    for (;;)
        hear();
}
