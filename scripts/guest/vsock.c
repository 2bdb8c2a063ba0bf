/* Stream sockets over vsock, for tests of the device. Says on standard output what came of it.
 *
 *   vsock echo PORT COUNT    serves COUNT connections at a time and after each other: gives back what comes, until its end
 *   vsock send PORT BYTES    connects to the host, sends BYTES and its end, and reads back what must be the same
 *   vsock mute PORT COUNT    accepts COUNT connections and reads nothing, until it is killed
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/vm_sockets.h>

static char buffer[64 << 10];

static void fail(const char *what)
{
	printf("CELLBLOCK-VSOCK %s: %s\n", what, strerror(errno));
	exit(1);
}

static unsigned char pattern(unsigned long at)
{
	return (unsigned char)((unsigned)at * 0x9e3779b1u >> 24);
}

static void write_all(int stream, const char *bytes, size_t count)
{
	while (count > 0) {
		ssize_t done = write(stream, bytes, count);
		if (done < 0)
			fail("write");
		bytes += done;
		count -= done;
	}
}

static void echo(int stream)
{
	unsigned long total = 0;
	ssize_t count;
	while ((count = read(stream, buffer, sizeof buffer)) > 0) {
		write_all(stream, buffer, count);
		total += count;
	}
	if (count < 0)
		fail("read");
	printf("CELLBLOCK-VSOCK echoed=%lu\n", total);
}

static void mute(int stream)
{
	(void)stream;
	for (;;)
		pause();
}

static void serve(unsigned port, int count, void (*with)(int))
{
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = port};
	int listener = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (listener < 0)
		fail("socket");
	if (bind(listener, (struct sockaddr *)&address, sizeof address) < 0 || listen(listener, 64) < 0)
		fail("listen");
	printf("CELLBLOCK-VSOCK listening\n");
	fflush(stdout);
	for (int served = 0; served < count; served++) {
		int stream = accept(listener, NULL, NULL);
		if (stream < 0)
			fail("accept");
		if (fork() == 0) {
			with(stream);
			exit(0);
		}
		close(stream);
	}
	while (wait(NULL) > 0)
		;
	printf("CELLBLOCK-VSOCK served=%d\n", count);
}

static void send_and_compare(unsigned port, unsigned long bytes)
{
	struct sockaddr_vm address = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_HOST, .svm_port = port};
	int stream = socket(AF_VSOCK, SOCK_STREAM, 0);
	if (stream < 0)
		fail("socket");
	if (connect(stream, (struct sockaddr *)&address, sizeof address) < 0)
		fail("connect");
	pid_t writer = fork();
	if (writer == 0) {
		for (unsigned long at = 0; at < bytes;) {
			size_t count = bytes - at < sizeof buffer ? bytes - at : sizeof buffer;
			for (size_t i = 0; i < count; i++)
				buffer[i] = pattern(at + i);
			write_all(stream, buffer, count);
			at += count;
		}
		if (shutdown(stream, SHUT_WR) < 0)
			fail("shutdown");
		exit(0);
	}
	unsigned long got = 0, wrong = 0;
	ssize_t count;
	while ((count = read(stream, buffer, sizeof buffer)) > 0) {
		for (ssize_t i = 0; i < count; i++)
			wrong += (unsigned char)buffer[i] != pattern(got + i);
		got += count;
	}
	if (count < 0)
		fail("read");
	int status;
	waitpid(writer, &status, 0);
	printf("CELLBLOCK-VSOCK got=%lu wrong=%lu writer=%d\n", got, wrong, status);
}

int main(int argc, char **argv)
{
	if (argc == 4 && !strcmp(argv[1], "echo"))
		serve(atoi(argv[2]), atoi(argv[3]), echo);
	else if (argc == 4 && !strcmp(argv[1], "mute"))
		serve(atoi(argv[2]), atoi(argv[3]), mute);
	else if (argc == 4 && !strcmp(argv[1], "send"))
		send_and_compare(atoi(argv[2]), atol(argv[3]));
	else
		return 2;
	return 0;
}
