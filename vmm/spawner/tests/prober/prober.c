/* A worker that tries what a worker must not do. Says "hello" on descriptor 3, then takes one command a message:
 * a letter, and a number for some. Answers "<result> <errno>". Built by the test: cc -static-pie -O1. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/ptrace.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <netinet/in.h>
#include <unistd.h>

static void *sleeper(void *unused) {
    for (;;) pause();
    return unused;
}

static long connect_loopback(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(22)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&address, sizeof address);
}

/* Connects to the abstract socket "cellblock-test". */
static long connect_abstract(void) {
    struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "\0cellblock-test"};
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    return fd < 0 ? -1 : connect(fd, (struct sockaddr *)&address, sizeof(sa_family_t) + 15);
}

/* Threads that can be made besides this one; at most 16. */
static long threads(void) {
    long made = 0;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 65536);
    for (pthread_t thread; made < 16 && pthread_create(&thread, &attributes, sleeper, 0) == 0;) made++;
    return made;
}

static long descriptors(void) {
    long mask = 0;
    for (int fd = 0; fd < 62; fd++)
        if (fcntl(fd, F_GETFD) >= 0) mask |= 1L << fd;
    return mask;
}

static long forks(void) {
    long pid = syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
    if (pid == 0) syscall(SYS_exit_group, 0);
    return pid;
}

static long host_name_is_hidden(void) {
    char name[65] = "";
    gethostname(name, sizeof name);
    return strcmp(name, "cellblock") == 0;
}

static long attempt(char what, long number) {
    static char *const none[] = {0};
    switch (what) {
    case 'o': return open("/proc/self/status", O_RDONLY);
    case 'd': return open("/", O_RDONLY | O_DIRECTORY);
    case 'c': return open("/made", O_CREAT | O_WRONLY, 0600);
    case 's': return connect_loopback();
    case 'A': return connect_abstract();
    case 'k': return kill(number, 0);
    case 'P': return getppid();
    case 'f': return forks();
    case 't': return threads();
    case 'u': return unshare(CLONE_NEWUSER);
    case 'n': return unshare(CLONE_NEWNET);
    case 'm': return mount("none", "/", "tmpfs", 0, 0);
    case 'p': return ptrace(PTRACE_ATTACH, number, 0, 0);
    case 'x': return syscall(SYS_execveat, 4, "", none, none, AT_EMPTY_PATH);
    case 'l': return descriptors();
    case 'h': return host_name_is_hidden();
    case 'U': return setuid(0);
    case 'M': return mmap(0, number, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED ? -1 : 0;
    case 'e': exit(number);
    case 'a': abort();
    default: return -2;
    }
}

int main(void) {
    char command[64], answer[64];
    write(3, "hello", 5);
    for (;;) {
        ssize_t length = read(3, command, sizeof command - 1);
        if (length <= 0) _exit(0);
        command[length] = 0;
        errno = 0;
        long result = attempt(command[0], atol(command + 1));
        int length_out = snprintf(answer, sizeof answer, "%ld %d", result, errno);
        write(3, answer, length_out);
    }
}
