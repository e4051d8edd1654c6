//! Ways to dial that the standard library of no other language in the tests offers: `ways WAY IP PORT [MORE]` connects as the way says,
//! reads the name that the endpoint says, sends bytes and expects them back. Prints the name, the peer's and the socket's own address.

#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/bpf.h>
#include <linux/io_uring.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef IPPROTO_MPTCP
#define IPPROTO_MPTCP 262
#endif
#ifndef TCP_FASTOPEN_CONNECT
#define TCP_FASTOPEN_CONNECT 30
#endif

static void fail(const char *what) {
	fprintf(stderr, "%s: %s\n", what, strerror(errno));
	exit(1);
}

static socklen_t parse(const char *ip, const char *port, struct sockaddr_storage *to) {
	struct sockaddr_in *v4 = (struct sockaddr_in *)to;
	struct sockaddr_in6 *v6 = (struct sockaddr_in6 *)to;
	memset(to, 0, sizeof *to);
	if (inet_pton(AF_INET, ip, &v4->sin_addr) == 1) {
		v4->sin_family = AF_INET;
		v4->sin_port = htons(atoi(port));
		return sizeof *v4;
	}
	if (inet_pton(AF_INET6, ip, &v6->sin6_addr) != 1) {
		errno = EINVAL;
		fail(ip);
	}
	v6->sin6_family = AF_INET6;
	v6->sin6_port = htons(atoi(port));
	return sizeof *v6;
}

static void print_name(const struct sockaddr_storage *name) {
	char text[INET6_ADDRSTRLEN];
	const struct sockaddr_in *v4 = (const struct sockaddr_in *)name;
	const struct sockaddr_in6 *v6 = (const struct sockaddr_in6 *)name;
	if (name->ss_family == AF_INET)
		printf(" %s:%d", inet_ntop(AF_INET, &v4->sin_addr, text, sizeof text), ntohs(v4->sin_port));
	else
		printf(" [%s]:%d", inet_ntop(AF_INET6, &v6->sin6_addr, text, sizeof text), ntohs(v6->sin6_port));
}

static void print_names(int fd) {
	struct sockaddr_storage name;
	socklen_t length = sizeof name;
	if (getpeername(fd, (struct sockaddr *)&name, &length) != 0)
		fail("getpeername");
	print_name(&name);
	length = sizeof name;
	if (getsockname(fd, (struct sockaddr *)&name, &length) != 0)
		fail("getsockname");
	// The port is the kernel's choice: only the address is of interest.
	if (name.ss_family == AF_INET)
		((struct sockaddr_in *)&name)->sin_port = 0;
	else
		((struct sockaddr_in6 *)&name)->sin6_port = 0;
	print_name(&name);
}

static void read_exactly(int fd, char *bytes, size_t count) {
	while (count > 0) {
		ssize_t got = read(fd, bytes, count);
		if (got < 0 && (errno == EAGAIN || errno == EINTR)) {
			struct pollfd readable = {.fd = fd, .events = POLLIN};
			if (poll(&readable, 1, 15000) != 1) {
				errno = ETIMEDOUT;
				fail("poll");
			}
			continue;
		}
		if (got <= 0)
			fail("read");
		bytes += got;
		count -= got;
	}
}

// Reads the name, then what was sent with the connect (`early`), then a quarter of a megabyte of echo.
static void converse(int fd, const char *early) {
	enum { CHUNK = 16384, CHUNKS = 16 };
	static char out[CHUNK], back[CHUNK];
	char name[64] = {0};
	size_t length = 0;
	do {
		read_exactly(fd, name + length, 1);
	} while (name[length++] != '\n' && length < sizeof name - 1);
	name[length - 1] = 0;
	read_exactly(fd, back, strlen(early));
	if (memcmp(back, early, strlen(early)) != 0) {
		fprintf(stderr, "the early bytes came back changed\n");
		exit(1);
	}
	for (int chunk = 0; chunk < CHUNKS; chunk++) {
		for (int at = 0; at < CHUNK; at++)
			out[at] = (char)(at * 7 + chunk);
		for (ssize_t sent = 0; sent < CHUNK;) {
			ssize_t done = write(fd, out + sent, CHUNK - sent);
			if (done < 0 && errno != EAGAIN)
				fail("write");
			sent += done > 0 ? done : 0;
		}
		read_exactly(fd, back, CHUNK);
		if (memcmp(out, back, CHUNK) != 0) {
			fprintf(stderr, "chunk %d came back changed\n", chunk);
			exit(1);
		}
	}
	printf("%s", name);
	print_names(fd);
}

static int make(const struct sockaddr_storage *to, int kind, int protocol) {
	int fd = socket(to->ss_family, SOCK_STREAM | kind, protocol);
	if (fd < 0)
		fail("socket");
	return fd;
}

static void finish(int fd) {
	struct pollfd writable = {.fd = fd, .events = POLLOUT};
	int error = 0;
	socklen_t length = sizeof error;
	if (poll(&writable, 1, 15000) != 1)
		fail("poll");
	if (getsockopt(fd, SOL_SOCKET, SO_ERROR, &error, &length) != 0 || error != 0) {
		errno = error;
		fail("connect");
	}
}

// One IORING_OP_CONNECT on a ring of our own.
static int uring_connect(int fd, const struct sockaddr *to, socklen_t length) {
	struct io_uring_params params = {0};
	int ring = syscall(SYS_io_uring_setup, 4, &params);
	if (ring < 0)
		fail("io_uring_setup");
	size_t sq_bytes = params.sq_off.array + params.sq_entries * sizeof(uint32_t);
	size_t cq_bytes = params.cq_off.cqes + params.cq_entries * sizeof(struct io_uring_cqe);
	char *sq = mmap(0, sq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQ_RING);
	char *cq = mmap(0, cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_CQ_RING);
	struct io_uring_sqe *sqes =
		mmap(0, params.sq_entries * sizeof *sqes, PROT_READ | PROT_WRITE, MAP_SHARED, ring, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || sqes == MAP_FAILED)
		fail("mmap");
	memset(sqes, 0, sizeof *sqes);
	sqes->opcode = IORING_OP_CONNECT;
	sqes->fd = fd;
	sqes->addr = (uintptr_t)to;
	sqes->off = length;
	*(uint32_t *)(sq + params.sq_off.array) = 0;
	__atomic_store_n((uint32_t *)(sq + params.sq_off.tail), 1, __ATOMIC_RELEASE);
	if (syscall(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) != 1)
		fail("io_uring_enter");
	int result = ((struct io_uring_cqe *)(cq + params.cq_off.cqes))->res;
	close(ring);
	if (result < 0)
		errno = -result;
	return result;
}

static int syn_carried_data(int fd) {
	struct tcp_info info = {0};
	socklen_t length = sizeof info;
	if (getsockopt(fd, IPPROTO_TCP, TCP_INFO, &info, &length) != 0)
		fail("TCP_INFO");
	return (info.tcpi_options & TCPI_OPT_SYN_DATA) != 0;
}

// A connect4 program of somebody else on a cgroup, for as long as standard input is open.
static int foreign(int count, char **words) {
	struct bpf_insn deny[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 0},
		{.code = BPF_JMP | BPF_EXIT},
	};
	struct bpf_insn change[] = {
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 2, .imm = count > 4 ? (int)inet_addr(words[3]) : 0},
		{.code = BPF_STX | BPF_MEM | BPF_W, .dst_reg = 1, .src_reg = 2, .off = offsetof(struct bpf_sock_addr, user_ip4)},
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 2, .imm = count > 4 ? htons(atoi(words[4])) : 0},
		{.code = BPF_STX | BPF_MEM | BPF_W, .dst_reg = 1, .src_reg = 2, .off = offsetof(struct bpf_sock_addr, user_port)},
		{.code = BPF_ALU64 | BPF_MOV | BPF_K, .dst_reg = 0, .imm = 1},
		{.code = BPF_JMP | BPF_EXIT},
	};
	int changes = count > 4;
	union bpf_attr attr = {0};
	attr.prog_type = BPF_PROG_TYPE_CGROUP_SOCK_ADDR;
	attr.expected_attach_type = BPF_CGROUP_INET4_CONNECT;
	attr.insns = (uintptr_t)(changes ? change : deny);
	attr.insn_cnt = changes ? sizeof change / sizeof *change : sizeof deny / sizeof *deny;
	attr.license = (uintptr_t)"GPL";
	int program = syscall(SYS_bpf, BPF_PROG_LOAD, &attr, sizeof attr);
	if (program < 0)
		fail("BPF_PROG_LOAD");
	int cgroup = open(words[2], O_RDONLY | O_DIRECTORY);
	if (cgroup < 0)
		fail(words[2]);
	memset(&attr, 0, sizeof attr);
	// Without a flag it stands alone, until the cgroup is gone.
	int alone = count > 3 && strcmp(words[3], "alone") == 0;
	attr.link_create.prog_fd = alone ? cgroup : program;
	attr.link_create.target_fd = alone ? program : cgroup;
	attr.link_create.attach_type = BPF_CGROUP_INET4_CONNECT;
	if (syscall(SYS_bpf, alone ? BPF_PROG_ATTACH : BPF_LINK_CREATE, &attr, sizeof attr) < 0)
		fail("attaching");
	puts("attached");
	fflush(stdout);
	pause();
	return 0;
}

int main(int count, char **words) {
	struct sockaddr_storage to;
	if (count > 2 && strcmp(words[1], "foreign") == 0)
		return foreign(count, words);
	if (count > 2 && strcmp(words[1], "inherited") == 0) {
		converse(atoi(words[2]), "");
		return 0;
	}
	if (count < 4) {
		fprintf(stderr, "ways WAY IP PORT\n");
		return 64;
	}
	const char *way = words[1], *early = "";
	socklen_t length = parse(words[2], words[3], &to);
	const struct sockaddr *address = (const struct sockaddr *)&to;
	int fd;
	if (strcmp(way, "blocking") == 0) {
		fd = make(&to, 0, 0);
		if (connect(fd, address, length) != 0)
			fail("connect");
	} else if (strcmp(way, "non-blocking") == 0) {
		fd = make(&to, SOCK_NONBLOCK, 0);
		if (connect(fd, address, length) != 0 && errno != EINPROGRESS)
			fail("connect");
		finish(fd);
	} else if (strcmp(way, "fast-open") == 0) {
		early = "early bytes";
		fd = make(&to, 0, 0);
		if (sendto(fd, early, strlen(early), MSG_FASTOPEN, address, length) != (ssize_t)strlen(early))
			fail("sendto");
	} else if (strcmp(way, "fast-open-connect") == 0) {
		early = "early bytes";
		fd = make(&to, 0, 0);
		int one = 1;
		if (setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &one, sizeof one) != 0)
			fail("TCP_FASTOPEN_CONNECT");
		if (connect(fd, address, length) != 0)
			fail("connect");
		if (write(fd, early, strlen(early)) != (ssize_t)strlen(early))
			fail("write");
	} else if (strcmp(way, "io-uring") == 0) {
		fd = make(&to, 0, 0);
		if (uring_connect(fd, address, length) != 0)
			fail("IORING_OP_CONNECT");
	} else if (strcmp(way, "mptcp") == 0) {
		fd = make(&to, 0, IPPROTO_MPTCP);
		if (connect(fd, address, length) != 0)
			fail("connect");
	} else if (strcmp(way, "again") == 0) {
		// To a port that refuses (the fourth word), then to the right one on the same socket.
		struct sockaddr_storage wrong;
		socklen_t wrong_length = parse(words[2], words[4], &wrong);
		fd = make(&to, 0, 0);
		if (connect(fd, (struct sockaddr *)&wrong, wrong_length) == 0 || errno != ECONNREFUSED)
			fail("the wrong port");
		if (connect(fd, address, length) != 0)
			fail("connect");
	} else if (strcmp(way, "let-go") == 0) {
		struct sockaddr nowhere = {.sa_family = AF_UNSPEC};
		fd = make(&to, 0, 0);
		if (connect(fd, address, length) != 0 || connect(fd, &nowhere, sizeof nowhere) != 0)
			fail("connect(AF_UNSPEC)");
		if (connect(fd, address, length) != 0)
			fail("connect");
	} else if (strcmp(way, "exec") == 0) {
		char number[16];
		fd = make(&to, 0, 0);
		if (connect(fd, address, length) != 0)
			fail("connect");
		snprintf(number, sizeof number, "%d", fd);
		execl("/proc/self/exe", "ways", "inherited", number, (char *)0);
		fail("exec");
	} else {
		fprintf(stderr, "no such way: %s\n", way);
		return 64;
	}
	converse(fd, early);
	if (strncmp(way, "fast-open", 9) == 0)
		printf(" %s", syn_carried_data(fd) ? "syn-data" : "no-syn-data");
	puts("");
	return 0;
}
