/* SPDX-License-Identifier: BSD-2-Clause */
/*
 * Send a file by sendfile(2) over loopback TCP and write the received bytes to
 * standard output.  Exits with 0 if sendfile(2) has reached the end of the file,
 * with 2 if it has failed.
 */
#include <sys/types.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <err.h>
#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

static void
usage(void)
{
	errx(64, "usage: serve [-c] [-o offset] [-p piece] FILE\n"
	    "  -c         free the pages after sending (SF_NOCACHE)\n"
	    "  -o offset  first byte to send (default 0)\n"
	    "  -p piece   bytes of each sendfile call (default 0: the rest of the file)");
}

static long long
number(const char *text)
{
	char *end;
	long long value = strtoll(text, &end, 10);

	if (*text == '\0' || *end != '\0' || value < 0)
		errx(64, "not a number of bytes: %s", text);
	return (value);
}

int
main(int argc, char **argv)
{
	struct sockaddr_in sin = { .sin_len = sizeof(sin), .sin_family = AF_INET };
	socklen_t len = sizeof(sin);
	static char buf[65536];
	ssize_t n;
	off_t offset = 0, sent;
	size_t piece = 0;
	pid_t pid;
	int ch, fd, flags = 0, listener, in, out, status;

	while ((ch = getopt(argc, argv, "co:p:")) != -1) {
		switch (ch) {
		case 'c':
			flags = SF_NOCACHE;
			break;
		case 'o':
			offset = number(optarg);
			break;
		case 'p':
			piece = number(optarg);
			break;
		default:
			usage();
		}
	}
	if (argc - optind != 1)
		usage();
	if ((fd = open(argv[optind], O_RDONLY)) < 0)
		err(2, "%s", argv[optind]);
	sin.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	if ((listener = socket(AF_INET, SOCK_STREAM, 0)) < 0 ||
	    bind(listener, (struct sockaddr *)&sin, len) != 0 ||
	    listen(listener, 1) != 0 ||
	    getsockname(listener, (struct sockaddr *)&sin, &len) != 0 ||
	    (in = socket(AF_INET, SOCK_STREAM, 0)) < 0 ||
	    connect(in, (struct sockaddr *)&sin, len) != 0 ||
	    (out = accept(listener, NULL, NULL)) < 0)
		err(1, "loopback TCP");
	if ((pid = fork()) < 0)
		err(1, "fork");
	if (pid == 0) {
		close(in);
		do {
			sent = 0;
			if (sendfile(fd, out, offset, piece, NULL, &sent, flags) != 0)
				err(2, "sendfile %s at %lld", argv[optind], (long long)offset);
			offset += sent;
		} while (sent > 0);
		_exit(0);
	}
	close(out);
	while ((n = read(in, buf, sizeof(buf))) > 0)
		if (write(STDOUT_FILENO, buf, n) != n)
			err(1, "write");
	if (waitpid(pid, &status, 0) < 0)
		err(1, "waitpid");
	/* If a read fails after sendfile has returned, the kernel resets the connection. */
	if (n < 0 || !WIFEXITED(status))
		errx(2, "the connection broke before the end of the file");
	return (WEXITSTATUS(status));
}
