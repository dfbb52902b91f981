/* SPDX-License-Identifier: BSD-2-Clause */
/* Sends a file through sendfile(2) over loopback TCP; its bytes come out on standard output. */
#include <sys/types.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <err.h>
#include <fcntl.h>
#include <unistd.h>

int
main(int argc, char **argv)
{
	struct sockaddr_in sin = { .sin_len = sizeof(sin), .sin_family = AF_INET };
	socklen_t len = sizeof(sin);
	struct stat sb;
	static char buf[65536];
	ssize_t n;
	off_t offset = 0, sent;
	pid_t pid;
	int fd, listener, in, out, status;

	if (argc != 2)
		errx(64, "usage: serve FILE");
	if ((fd = open(argv[1], O_RDONLY)) < 0 || fstat(fd, &sb) != 0)
		err(1, "%s", argv[1]);
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
		while (offset < sb.st_size) {
			sent = 0;
			if (sendfile(fd, out, offset, 0, NULL, &sent, 0) != 0)
				err(1, "sendfile %s", argv[1]);
			offset += sent;
		}
		_exit(0);
	}
	close(out);
	while ((n = read(in, buf, sizeof(buf))) > 0)
		if (write(STDOUT_FILENO, buf, n) != n)
			err(1, "write");
	if (n < 0 || waitpid(pid, &status, 0) < 0 || status != 0)
		errx(1, "the file did not arrive whole");
	return (0);
}
