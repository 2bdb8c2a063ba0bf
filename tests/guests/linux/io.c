// A program for the small Linux guest: how fast a disk is, past the guest's page cache.
//
//   io DISK PATTERN SECONDS      prints: CELLBLOCK-IO bytes=N ns=N
//
// One request at a time: sequential requests of 1 MiB, or random ones of 4 KiB; reads or writes.
#define _GNU_SOURCE
#include <fcntl.h>
#include <linux/fs.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define SEQUENTIAL (1u << 20)
#define RANDOM 4096u

struct pattern {
    const char *name;
    uint32_t size;
    int random, write;
};

static const struct pattern patterns[] = {
    {"sequential-read", SEQUENTIAL, 0, 0},
    {"sequential-write", SEQUENTIAL, 0, 1},
    {"random-read", RANDOM, 1, 0},
    {"random-write", RANDOM, 1, 1},
};

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

// As many requests as there is time for, on the whole disk.
static uint64_t run(int disk, uint8_t *buffer, uint64_t bytes, const struct pattern *pattern, uint64_t until)
{
    uint64_t done = 0, places = bytes / pattern->size, seed = 0x9e3779b97f4a7c15u;
    for (uint64_t number = 0; now() < until; number++) {
        // xorshift: the same places in each run.
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        off_t at = (off_t)((pattern->random ? seed : number) % places * pattern->size);
        ssize_t count = pattern->write ? pwrite(disk, buffer, pattern->size, at) : pread(disk, buffer, pattern->size, at);
        if (count != (ssize_t)pattern->size)
            fail(pattern->name);
        done += pattern->size;
    }
    return done;
}

int main(int count, char **words)
{
    const struct pattern *pattern = patterns, *end = patterns + sizeof patterns / sizeof *patterns;
    while (count == 4 && pattern < end && strcmp(pattern->name, words[2]))
        pattern++;
    if (count != 4 || pattern == end)
        return 2;
    uint64_t span = (uint64_t)(atof(words[3]) * 1e9), bytes = 0;
    int disk = open(words[1], O_RDWR | O_DIRECT);
    if (disk < 0 || ioctl(disk, BLKGETSIZE64, &bytes) < 0)
        fail(words[1]);
    uint8_t *buffer;
    if (bytes < SEQUENTIAL || posix_memalign((void **)&buffer, 4096, SEQUENTIAL))
        return 2;
    memset(buffer, 0x5a, SEQUENTIAL);
    run(disk, buffer, bytes, pattern, now() + span / 8);
    uint64_t start = now();
    uint64_t done = run(disk, buffer, bytes, pattern, start + span);
    printf("CELLBLOCK-IO bytes=%llu ns=%llu\n", (unsigned long long)done, (unsigned long long)(now() - start));
    return 0;
}
