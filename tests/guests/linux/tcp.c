// A program for the small Linux guest: how fast a TCP connection with the host is.
//
//   tcp ADDRESS PORT transmit|receive SECONDS      prints: CELLBLOCK-IO bytes=N ns=N
//
// The host takes one byte that says the direction: `t` and it counts what comes and says how much, 8 bytes, when that ends; `r` and it
// sends for as long as somebody reads. An eighth of the time more is for warming up; it is not counted.
#include <arpa/inet.h>
#include <netinet/in.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static uint64_t now(void)
{
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return (uint64_t)time.tv_sec * 1000000000 + (uint64_t)time.tv_nsec;
}

static void fail(const char *what)
{
    printf("CELLBLOCK-IO failed: ");
    fflush(stdout);
    perror(what);
    exit(1);
}

static char buffer[128 << 10];

static uint64_t pass(int connection, int transmits, uint64_t until)
{
    uint64_t bytes = 0;
    while (now() < until) {
        ssize_t count = transmits ? write(connection, buffer, sizeof buffer) : read(connection, buffer, sizeof buffer);
        if (count <= 0)
            fail(transmits ? "write" : "read");
        bytes += (uint64_t)count;
    }
    return bytes;
}

int main(int count, char **words)
{
    if (count != 5)
        return 2;
    int transmits = !strcmp(words[3], "transmit");
    uint64_t span = (uint64_t)(atof(words[4]) * 1e9), start, bytes, told;
    struct sockaddr_in host = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(words[2]))};
    int connection = socket(AF_INET, SOCK_STREAM, 0);
    if (inet_pton(AF_INET, words[1], &host.sin_addr) != 1 || connect(connection, (void *)&host, sizeof host))
        fail("connect");
    if (write(connection, transmits ? "t" : "r", 1) != 1)
        fail("write");
    uint64_t warm = pass(connection, transmits, now() + span / 8);
    start = now();
    bytes = pass(connection, transmits, start + span);
    if (transmits) {
        // Until the host has had all of it.
        shutdown(connection, SHUT_WR);
        if (read(connection, &told, sizeof told) != sizeof told || told != warm + bytes)
            fail("what the host has had");
    }
    printf("CELLBLOCK-IO bytes=%llu ns=%llu\n", (unsigned long long)bytes, (unsigned long long)(now() - start));
    return 0;
}
