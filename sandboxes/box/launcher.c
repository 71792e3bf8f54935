/* The launcher: turns requests on its control socket into sandboxes, and tells when each is dead.
 *
 * It has one thread, because PDEATHSIG follows the thread that forked: when it dies, however it dies, every sandbox dies.
 * It ends when the control socket closes or when the worker that started it is gone.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/securebits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <grp.h>
#include <unistd.h>

#include "box.h"

#define MAX_GROUPS 4
#define MAX_DATAGRAM (256 * 1024)
#ifndef SYS_close_range
#define SYS_close_range 436
#endif
#define NAMESPACES (CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWIPC | CLONE_NEWUTS | CLONE_NEWNET)

struct live {
    pid_t pid;
    uint32_t id;
    int sync;  /* until the user namespace is mapped: our end of the pair; then -1 */
    int upper; /* the directory that collects what it writes */
};

struct copying { /* a child of ours that fills a snapshot */
    pid_t pid;
    uint32_t number;
};

static struct live *living;
static int living_count, living_room;
static struct copying *copies;
static int copies_count, copies_room;
static int control_socket;
static enum map_mode map_mode;
static uint32_t uid_shift;

static void tell(uint32_t type, uint32_t id, int32_t value, const char *text) {
    char message[512];
    struct launcher_event event = {type, id, value};
    size_t length = text ? strnlen(text, sizeof message - sizeof event) : 0;
    memcpy(message, &event, sizeof event);
    if (length)
        memcpy(message + sizeof event, text, length);
    while (send(control_socket, message, sizeof event + length, MSG_NOSIGNAL) < 0 && errno == EINTR)
        ;
}

static int write_file(const char *path, const char *text) {
    int fd = open(path, O_WRONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t written = write(fd, text, strlen(text));
    int saved = errno;
    close(fd);
    errno = saved;
    return written < 0 ? -1 : 0;
}

/* Map the ids of a child that has just left its user namespace: to unprivileged host ids, never to the host's root. */
static int map_ids(pid_t pid) {
    char path[64], map[64];
    if (map_mode == MAP_ROOT)
        snprintf(map, sizeof map, "0 %u 65536\n", uid_shift);
    else /* our own map has these two ranges, and a range of a child's must lie within one of its parent's */
        snprintf(map, sizeof map, "0 0 1\n%s", map_mode == MAP_SINGLE ? "" : "1 1 65535\n");
    if (map_mode == MAP_SINGLE) {
        snprintf(path, sizeof path, "/proc/%d/setgroups", pid);
        if (write_file(path, "deny"))
            return -1;
    }
    snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
    if (write_file(path, map))
        return -1;
    snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
    return write_file(path, map);
}

static void child_fails(int socket, const char *step) {
    char text[256];
    int length = snprintf(text, sizeof text, "%s: %s", step, strerror(errno));
    struct frame header = {(uint32_t)length, 0, F_FAILED};
    char message[sizeof header + sizeof text];
    memcpy(message, &header, sizeof header);
    memcpy(message + sizeof header, text, (size_t)length);
    if (send(socket, message, sizeof header + (size_t)length, MSG_NOSIGNAL) < 0)
        _exit(126);
    _exit(125);
}

/* Ask for the map, and leave the upper directory with the launcher, which alone can copy it. */
static int ask_for_map(int sync, int upper) {
    char byte = 'u';
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } ancillary;
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &ancillary, .msg_controllen = sizeof ancillary};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    *header = (struct cmsghdr){.cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS, .cmsg_len = CMSG_LEN(sizeof upper)};
    memcpy(CMSG_DATA(header), &upper, sizeof upper);
    return sendmsg(sync, &message, MSG_NOSIGNAL) == 1 && read(sync, &byte, 1) == 1 ? 0 : -1;
}

/* The kernel charges what a user namespace uses of some host-wide stocks (inotify instances above all) to whoever made it, so one
 * sandbox could use up what root, and with it every other sandbox, may have. Each is therefore made under a user id of its own, in a
 * range that no machine gives out, and with all of root's capabilities kept. Where that cannot be had, root is charged. */
static void be_nobody_in_particular(void) {
    uint32_t drawn;
    if (getrandom(&drawn, sizeof drawn, 0) == sizeof drawn && !prctl(PR_SET_SECUREBITS, SECBIT_NO_SETUID_FIXUP))
        (void)!setresuid((uid_t)-1, 0xE0000000u | (drawn & 0x0fffffffu), (uid_t)-1);
}

/* Everything a sandbox does before it is PID 1 of its own world. Never returns. */
static void child(const struct create_request *request, const char *strings, int socket, int sync, const int *groups) {
    const char *step = "";
    if (request->group_version == 1)
        for (uint32_t i = 0; i < request->groups; i++)
            /* "0" moves the writer alone, which spares the kernel's global lock that moving another process takes */
            if (write(groups[i], "0", 1) != 1)
                child_fails(socket, "join control group");
    if (request->groups && map_mode == MAP_ROOT) /* within its own group only: a bomb of a thousand must not starve PID 1 */
        setpriority(PRIO_PROCESS, 0, -19);
    if (request->groups && unshare(CLONE_NEWCGROUP))
        child_fails(socket, "unshare cgroup");
    if (sethostname("sandbox", 7))
        child_fails(socket, "sethostname");
    if (!(request->flags & CREATE_HOST_NETWORK) && loopback_up())
        child_fails(socket, "loopback up");
    struct box box = {.socket_in = 3, .socket_out = 3, .build = !!(request->flags & CREATE_BUILD),
                      .single_id = map_mode == MAP_SINGLE, .lease_s = request->lease_s, .workdir = strings,
                      .workdir_uid = request->workdir_uid, .workdir_gid = request->workdir_gid};
    if (root_enter(request, strings, map_mode, uid_shift, &box.upper, &step))
        child_fails(socket, step);
    if (map_mode == MAP_ROOT)
        be_nobody_in_particular();
    if (unshare(CLONE_NEWUSER))
        child_fails(socket, "unshare user");
    if (ask_for_map(sync, box.upper))
        _exit(124);
    if (map_mode != MAP_SINGLE && setgroups(0, NULL))
        child_fails(socket, "setgroups");
    if (setresgid(0, 0, 0) || setresuid(0, 0, 0))
        child_fails(socket, "become root inside");
    /* descriptors: 0-2 are /dev/null, 3 the socket, 4 the upper directory; nothing of the launcher's survives */
    if (socket != 3 && box.upper == 3 && (box.upper = fcntl(3, F_DUPFD_CLOEXEC, 5)) < 0)
        child_fails(socket, "dup upper");
    if (socket != 3 && dup3(socket, 3, O_CLOEXEC) < 0)
        child_fails(socket, "dup socket");
    if (box.upper > 4) {
        if (dup3(box.upper, 4, O_CLOEXEC) < 0)
            child_fails(3, "dup upper");
        box.upper = 4;
    }
    syscall(SYS_close_range, box.upper < 0 ? 4 : 5, ~0u, 0);
    if (confine_limits(request, &step) || confine_resident(box.build, &step))
        child_fails(3, step);
    /* after the last change of credentials, which would clear it */
    if (prctl(PR_SET_PDEATHSIG, SIGKILL))
        child_fails(3, "PDEATHSIG");
    resident_run(&box);
}

static void create(const struct create_request *request, const char *strings, int socket, const int *groups) {
    int pair[2];
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair)) {
        tell(L_DEAD, request->id, errno, NULL);
        return;
    }
    const char *cursor = strings;
    for (uint32_t i = 0; i < 3 + request->layers; i++)
        cursor += strlen(cursor) + 1;
    for (uint32_t i = 0; i < request->binds; i++) {
        root_bind_index(cursor); /* cached here, used by the child; a failure shows there, with its reason */
        for (int k = 0; k < 2; k++)
            cursor += strlen(cursor) + 1;
    }
    struct { /* struct clone_args, which not every libc's headers have */
        uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
    } arguments = {.flags = NAMESPACES, .exit_signal = SIGCHLD};
    if (request->flags & CREATE_HOST_NETWORK)
        arguments.flags &= ~(uint64_t)CLONE_NEWNET;
    if (request->groups && request->group_version == 2) {
        arguments.flags |= 0x200000000ULL; /* CLONE_INTO_CGROUP */
        arguments.cgroup = (uint64_t)groups[0];
    }
    pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid == 0) {
        close(pair[0]);
        child(request, strings, socket, pair[1], groups);
    }
    int saved = errno;
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        errno = saved;
        if (socket >= 0) {
            char text[128];
            int length = snprintf(text, sizeof text, "clone: %s", strerror(saved));
            struct frame header = {(uint32_t)length, 0, F_FAILED};
            if (send(socket, &header, sizeof header, MSG_NOSIGNAL | MSG_MORE) > 0)
                send(socket, text, (size_t)length, MSG_NOSIGNAL);
        }
        tell(L_DEAD, request->id, saved, NULL);
        return;
    }
    if (living_count == living_room) {
        living_room = living_room ? living_room * 2 : 64;
        living = realloc(living, (size_t)living_room * sizeof *living);
        if (!living)
            abort();
    }
    living[living_count++] = (struct live){pid, request->id, pair[0], -1};
}

/* A child waits for its map: write it, let the child go on. A child whose map cannot be written is killed. */
static void advance(struct live *box) {
    char byte;
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int))];
    } ancillary;
    struct iovec vector = {&byte, 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &ancillary, .msg_controllen = sizeof ancillary};
    if (recvmsg(box->sync, &message, MSG_CMSG_CLOEXEC) == 1) {
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS)
            memcpy(&box->upper, CMSG_DATA(header), sizeof box->upper);
        if (map_ids(box->pid) || write(box->sync, &byte, 1) != 1) {
            char text[128];
            snprintf(text, sizeof text, "mapping ids: %s", strerror(errno));
            tell(L_BROKEN, box->id, errno, text);
            kill(box->pid, SIGKILL);
        }
    }
    close(box->sync);
    box->sync = -1;
}

static void tell_copied(uint32_t number, int error) {
    if (error)
        root_discard(number);
    tell(L_COPIED, number, error, NULL);
}

/* A child does the copying, so that nobody waits for it but whoever asked. */
static void snapshot(const struct snapshot_request *request) {
    int upper = -1;
    for (int i = 0; i < living_count; i++)
        if (living[i].id == request->id)
            upper = living[i].upper;
    if (upper < 0)
        return tell(L_COPIED, request->number, ESRCH, NULL);
    int error = root_snapshot(request->number, request->disk_bytes, request->inodes);
    if (error)
        return tell_copied(request->number, error);
    pid_t pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        _exit(root_fill_snapshot(request->number, upper));
    }
    if (pid < 0)
        return tell_copied(request->number, errno);
    if (copies_count == copies_room) {
        copies_room = copies_room ? copies_room * 2 : 16;
        copies = realloc(copies, (size_t)copies_room * sizeof *copies);
        if (!copies)
            abort();
    }
    copies[copies_count++] = (struct copying){pid, request->number};
}

static void reap(void) {
    int status;
    pid_t pid;
    while ((pid = waitpid(-1, &status, WNOHANG)) > 0) {
        for (int i = 0; i < copies_count; i++)
            if (copies[i].pid == pid) {
                tell_copied(copies[i].number, WIFEXITED(status) ? WEXITSTATUS(status) : EINTR);
                copies[i] = copies[--copies_count];
                break;
            }
        for (int i = 0; i < living_count; i++)
            if (living[i].pid == pid) {
                if (living[i].sync >= 0)
                    close(living[i].sync);
                if (living[i].upper >= 0)
                    close(living[i].upper);
                tell(L_DEAD, living[i].id, status, NULL);
                living[i] = living[--living_count];
                break;
            }
    }
}

static int handle_control(void) {
    static char buffer[MAX_DATAGRAM] __attribute__((aligned(8)));
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(int) * (1 + MAX_GROUPS))];
    } ancillary;
    struct iovec vector = {buffer, sizeof buffer - 1};
    struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &ancillary, .msg_controllen = sizeof ancillary};
    ssize_t length = recvmsg(control_socket, &message, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
    if (length < 0)
        return errno == EAGAIN || errno == EINTR ? 0 : -1;
    if (length == 0)
        return -1;
    int fds[1 + MAX_GROUPS], count = 0;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
        count = (int)((header->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        memcpy(fds, CMSG_DATA(header), (size_t)count * sizeof(int));
    }
    buffer[length] = 0;
    const struct create_request *request = (const void *)buffer;
    if ((size_t)length >= sizeof *request && request->type == L_CREATE && count == 1 + (int)request->groups)
        create(request, buffer + sizeof *request, fds[0], fds + 1);
    else if ((size_t)length >= 8 && request->type == L_KILL) {
        for (int i = 0; i < living_count; i++)
            if (living[i].id == request->id)
                kill(living[i].pid, SIGKILL);
    } else if ((size_t)length == sizeof(struct snapshot_request) && request->type == L_SNAPSHOT)
        snapshot((const void *)buffer);
    else if ((size_t)length >= 8 && request->type == L_DISCARD)
        root_discard(request->id);
    else
        tell(L_BROKEN, 0, EPROTO, "launcher: malformed request");
    for (int i = 0; i < count; i++)
        close(fds[i]);
    return 0;
}

int launcher_run(int control, enum map_mode mode, uint32_t shift, const char *scratch) {
    control_socket = control;
    map_mode = mode;
    uid_shift = shift;
    fcntl(control, F_SETFD, FD_CLOEXEC);
    int worker = (int)syscall(SYS_pidfd_open, getppid(), 0);
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    /* a terminal's Ctrl-C belongs to the worker, which ends us by closing the socket */
    signal(SIGINT, SIG_IGN);
    int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    umask(0);
    if (mode != MAP_ROOT) {
        char byte;
        if (unshare(CLONE_NEWUSER)) {
            tell(L_BROKEN, 0, errno, "unshare user namespace");
            return 1;
        }
        tell(L_MAP_ME, 0, 0, NULL);
        if (recv(control, &byte, 1, 0) != 1)
            return 1;
        if (setresgid(0, 0, 0) || setresuid(0, 0, 0)) {
            tell(L_BROKEN, 0, errno, "become root of the user namespace");
            return 1;
        }
    }
    if (root_prepare_launcher(scratch, mode)) {
        char text[256];
        snprintf(text, sizeof text, "prepare mounts below %s: %s", scratch, strerror(errno));
        tell(L_BROKEN, 0, errno, text);
        return 1;
    }
    tell(L_READY, 0, PROTOCOL, NULL);
    for (;;) {
        static struct pollfd *polls;
        static int polls_room;
        if (polls_room < 3 + living_count) {
            polls_room = 3 + living_count * 2;
            polls = realloc(polls, (size_t)polls_room * sizeof *polls);
            if (!polls)
                abort();
        }
        int used = 0;
        polls[used++] = (struct pollfd){control, POLLIN, 0};
        polls[used++] = (struct pollfd){signals, POLLIN, 0};
        polls[used++] = (struct pollfd){worker, POLLIN, 0};
        for (int i = 0; i < living_count; i++)
            if (living[i].sync >= 0)
                polls[used++] = (struct pollfd){living[i].sync, POLLIN, 0};
        if (poll(polls, (nfds_t)used, -1) < 0 && errno != EINTR)
            return 1;
        if (polls[2].revents)
            return 0;
        for (int k = 3; k < used; k++)
            if (polls[k].revents)
                for (int i = 0; i < living_count; i++)
                    if (living[i].sync == polls[k].fd) {
                        advance(&living[i]);
                        break;
                    }
        if (polls[1].revents) {
            struct signalfd_siginfo info[16];
            while (read(signals, info, sizeof info) > 0)
                ;
            reap();
        }
        if (polls[0].revents && handle_control())
            return 0;
    }
}
