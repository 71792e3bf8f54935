/* Commands: start, collect output with a cap, end by exit or by deadline together with everything they started.
 *
 * A command's first process is made the reaper of its orphans before it starts, so every process it ever makes, also one with a
 * session of its own, stays below it in the tree until it ends; confine.c refuses to let it resign. At a deadline the tree is
 * stopped first and killed then, so that a fork bomb cannot outrun the walk.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "box.h"

struct stream { /* the first `head` bytes stay, the rest of `cap` is a ring */
    int fd;
    char *bytes;
    uint32_t cap, head;
    uint64_t total;
};

struct command {
    uint32_t id;
    pid_t pid; /* 0: free slot */
    int timed_out;
    int64_t started, deadline;
    struct stream stream[2];
};

static struct command commands[MAX_EXECS];
static int leftovers[MAX_EXECS]; /* pipes that background processes still hold: read and dropped, so that they do not block */
static int leftover_count;

/* Read once into the stream; 0 at end of file or when nothing is there. */
static ssize_t pull(struct stream *s, size_t limit) {
    static char dropped[65536];
    size_t room;
    char *at;
    if (s->total < s->cap) {
        at = s->bytes + s->total;
        room = s->cap - (size_t)s->total;
    } else if (s->cap > s->head) {
        size_t ring = s->cap - s->head, offset = (size_t)((s->total - s->head) % ring);
        at = s->bytes + s->head + offset;
        room = ring - offset;
    } else {
        at = dropped;
        room = sizeof dropped;
    }
    ssize_t n = read(s->fd, at, room < limit ? room : limit);
    if (n > 0)
        s->total += (uint64_t)n;
    return n;
}

static void drop_stream(struct stream *s) {
    if (s->fd >= 0)
        close(s->fd);
    s->fd = -1;
}

/* Put the ring behind the head in order; returns the number of bytes to send. */
static uint32_t unroll(struct stream *s) {
    if (s->total <= s->cap)
        return (uint32_t)s->total;
    size_t ring = s->cap - s->head, offset = ring ? (size_t)((s->total - s->head) % ring) : 0;
    if (offset) {
        char *copy = malloc(ring);
        if (!copy)
            _exit(12);
        memcpy(copy, s->bytes + s->head + offset, ring - offset);
        memcpy(copy + ring - offset, s->bytes + s->head, offset);
        memcpy(s->bytes + s->head, copy, ring);
        free(copy);
    }
    return s->cap;
}

static void keep_draining(int fd) {
    if (leftover_count == MAX_EXECS) {
        close(leftovers[0]);
        memmove(leftovers, leftovers + 1, sizeof *leftovers * (size_t)--leftover_count);
    }
    leftovers[leftover_count++] = fd;
}

static void finish(struct command *c, int wait_status, int start_errno, const struct rusage *usage) {
    struct exec_reply result = {.wait_status = wait_status, .start_errno = (uint32_t)start_errno,
                                .timed_out = (uint32_t)c->timed_out, .wall_us = (uint64_t)(now_us() - c->started)};
    if (usage)
        result.cpu_us = (uint64_t)(usage->ru_utime.tv_sec + usage->ru_stime.tv_sec) * 1000000 +
                        (uint64_t)(usage->ru_utime.tv_usec + usage->ru_stime.tv_usec);
    for (int i = 0; i < 2; i++) {
        struct stream *s = &c->stream[i];
        int waiting = 0;
        if (s->fd < 0)
            continue;
        /* what was written before the end counts; what a background process writes from now on does not */
        if (!ioctl(s->fd, FIONREAD, &waiting))
            while (waiting > 0) {
                ssize_t n = pull(s, (size_t)waiting);
                if (n <= 0)
                    break;
                waiting -= (int)n;
            }
        char probe;
        if (read(s->fd, &probe, 1) == 0) {
            drop_stream(s);
        } else {
            keep_draining(s->fd);
            s->fd = -1;
        }
    }
    result.output_length = unroll(&c->stream[0]);
    result.stderr_length = unroll(&c->stream[1]);
    result.output_head = c->stream[0].head;
    result.stderr_head = c->stream[1].head;
    result.output_total = c->stream[0].total;
    result.stderr_total = c->stream[1].total;
    size_t length = result.output_length + (size_t)result.stderr_length;
    char *body = c->stream[0].bytes;
    if (result.stderr_length) {
        if (!(body = malloc(length)))
            _exit(12);
        memcpy(body, c->stream[0].bytes, result.output_length);
        memcpy(body + result.output_length, c->stream[1].bytes, result.stderr_length);
    }
    reply(c->id, F_EXIT, &result, sizeof result, body, length);
    if (body != c->stream[0].bytes)
        free(body);
    free(c->stream[0].bytes);
    free(c->stream[1].bytes);
    c->pid = 0;
}

/* ---- starting ---- */

struct launch {
    char **argv, **envp;
    const char *cwd, *path;
    int in, out, err, build, single_id;
    uint32_t uid, gid;
    volatile int error;
};

/* Runs in PID 1's memory while PID 1 waits (vfork), so it may only make system calls and set `error`. */
static int child_main(void *argument) {
    struct launch *launch = argument;
    char candidate[PATH_MAX];
    sigset_t none;
    sigemptyset(&none);
    signal(SIGPIPE, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    if (setsid() < 0 || dup2(launch->in, 0) < 0 || dup2(launch->out, 1) < 0 || dup2(launch->err, 2) < 0 ||
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        goto fail;
    gid_t group = launch->gid;
    /* raw calls: a libc's wrappers take its thread locks, which belong to PID 1 */
    if (!launch->single_id && (syscall(SYS_setgroups, launch->uid ? 1 : 0, &group) || syscall(SYS_setresgid, group, group, group) ||
                               syscall(SYS_setresuid, launch->uid, launch->uid, launch->uid)))
        goto fail;
    if (confine_command(launch->build))
        goto fail;
    if (chdir(launch->cwd)) {
        launch->error = errno | START_CHDIR;
        _exit(127);
    }
    umask(022);
    if (strchr(launch->argv[0], '/')) {
        execve(launch->argv[0], launch->argv, launch->envp);
        goto fail;
    }
    int denied = 0;
    for (const char *p = launch->path; p && *p;) {
        size_t length = strcspn(p, ":");
        if (length && length + strlen(launch->argv[0]) + 2 < sizeof candidate) {
            memcpy(candidate, p, length);
            candidate[length] = '/';
            strcpy(candidate + length + 1, launch->argv[0]);
            execve(candidate, launch->argv, launch->envp);
            if (errno != ENOENT && errno != ENOTDIR)
                denied = errno;
        }
        p += length + (p[length] == ':');
    }
    errno = denied ? denied : ENOENT;
fail:
    launch->error = errno;
    _exit(127);
}

/* One NUL-terminated string of a payload, or NULL beyond its end. */
static char *next_string(const char **cursor, const char *end) {
    char *text = (char *)*cursor;
    const char *stop = *cursor < end ? memchr(*cursor, 0, (size_t)(end - *cursor)) : NULL;
    if (!stop)
        return NULL;
    *cursor = stop + 1;
    return text;
}

static int open_input(const char *data, uint32_t length) {
    if (!length)
        return open("/dev/null", O_RDONLY | O_CLOEXEC);
    int fd = memfd_create("stdin", MFD_CLOEXEC);
    while (fd >= 0 && length) {
        ssize_t n = write(fd, data, length);
        if (n <= 0) {
            close(fd);
            return -1;
        }
        data += n;
        length -= (uint32_t)n;
    }
    if (fd >= 0)
        lseek(fd, 0, SEEK_SET);
    return fd;
}

void exec_start(uint32_t id, const char *payload, size_t length, const struct box *box) {
    struct exec_request request;
    const char *cursor = payload + sizeof request, *end = payload + length;
    struct command *c = NULL;
    if (length < sizeof request)
        return reply_errno(id, EPROTO);
    memcpy(&request, payload, sizeof request);
    for (int i = 0; i < MAX_EXECS && !c; i++)
        if (!commands[i].pid)
            c = &commands[i];
    if (!c)
        return reply_errno(id, EAGAIN);
    if (request.argc < 1 || request.argc > length || request.envc > length || request.stdin_length > length)
        return reply_errno(id, EPROTO);
    char **words = calloc((size_t)request.argc + request.envc + 2, sizeof *words);
    if (!words)
        _exit(12);
    struct launch launch = {.argv = words, .envp = words + request.argc + 1, .cwd = next_string(&cursor, end), .single_id = box->single_id,
                            .build = box->build && (request.flags & EXEC_BUILD), .uid = request.uid, .gid = request.gid};
    int complete = launch.cwd != NULL;
    for (uint32_t i = 0; complete && i < request.argc; i++)
        complete = (launch.argv[i] = next_string(&cursor, end)) != NULL;
    for (uint32_t i = 0; complete && i < request.envc; i++) {
        complete = (launch.envp[i] = next_string(&cursor, end)) != NULL;
        if (complete && !strncmp(launch.envp[i], "PATH=", 5))
            launch.path = launch.envp[i] + 5;
    }
    if (!complete || (size_t)(end - cursor) != request.stdin_length) {
        free(words);
        return reply_errno(id, EPROTO);
    }
    int split = request.flags & EXEC_SPLIT, out[2] = {-1, -1}, err[2] = {-1, -1};
    *c = (struct command){.id = id, .started = now_us(), .stream = {{.fd = -1}, {.fd = -1}}};
    launch.in = open_input(cursor, request.stdin_length);
    if (launch.in < 0 || pipe2(out, O_CLOEXEC | O_NONBLOCK) || (split && pipe2(err, O_CLOEXEC | O_NONBLOCK)))
        launch.error = errno;
    if (!launch.error) {
        static char stack[64 * 1024] __attribute__((aligned(16)));
        /* the command's own end must block as every program expects */
        fcntl(out[1], F_SETFL, 0);
        if (split)
            fcntl(err[1], F_SETFL, 0);
        launch.out = out[1];
        launch.err = split ? err[1] : out[1];
        c->pid = clone(child_main, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, &launch);
        if (c->pid < 0)
            launch.error = errno;
        else if (launch.error)
            waitpid(c->pid, NULL, 0);
    }
    if (launch.in >= 0)
        close(launch.in);
    if (out[1] >= 0)
        close(out[1]);
    if (err[1] >= 0)
        close(err[1]);
    free(words);
    if (launch.error) {
        if (out[0] >= 0)
            close(out[0]);
        if (err[0] >= 0)
            close(err[0]);
        return finish(c, 0, launch.error, NULL);
    }
    int ends[2] = {out[0], err[0]};
    for (int i = 0; i < 1 + !!split; i++) {
        struct stream *s = &c->stream[i];
        *s = (struct stream){.fd = ends[i], .cap = request.output_cap, .head = request.output_cap / 2};
        if (!(s->bytes = malloc(s->cap + 1u)))
            _exit(12);
    }
    c->deadline = c->started + (int64_t)request.timeout_ms * 1000;
}

/* ---- ending ---- */

void exec_kill(uint32_t id) {
    for (int i = 0; i < MAX_EXECS; i++)
        if (commands[i].pid > 0 && commands[i].id == id)
            kill_tree(commands[i].pid);
}

static void ended(pid_t pid, int status, const struct rusage *usage) {
    for (int i = 0; i < MAX_EXECS; i++)
        if (commands[i].pid == pid)
            finish(&commands[i], status, 0, usage);
}

void exec_reap(void) {
    struct rusage usage;
    int status;
    pid_t pid;
    while ((pid = wait4(-1, &status, WNOHANG, &usage)) > 0)
        ended(pid, status, &usage);
}

void exec_kill_everything(void) {
    struct rusage usage;
    int status;
    pid_t pid;
    do {
        kill(-1, SIGKILL);
        while ((pid = wait4(-1, &status, 0, &usage)) > 0)
            ended(pid, status, &usage);
    } while (pid < 0 && errno != ECHILD);
    while (leftover_count)
        close(leftovers[--leftover_count]);
}

/* ---- the event loop's view ---- */

int exec_poll_set(struct pollfd *set, int used) {
    for (int i = 0; i < MAX_EXECS; i++)
        for (int k = 0; k < 2; k++)
            if (commands[i].pid > 0 && commands[i].stream[k].fd >= 0)
                set[used++] = (struct pollfd){commands[i].stream[k].fd, POLLIN, 0};
    for (int i = 0; i < leftover_count; i++)
        set[used++] = (struct pollfd){leftovers[i], POLLIN, 0};
    return used;
}

static struct stream *stream_of(int fd) {
    for (int i = 0; i < MAX_EXECS; i++)
        for (int k = 0; k < 2; k++)
            if (commands[i].pid > 0 && commands[i].stream[k].fd == fd)
                return &commands[i].stream[k];
    return NULL;
}

void exec_poll_done(const struct pollfd *set, int from, int until) {
    static char dropped[65536];
    for (int p = from; p < until; p++) {
        if (!set[p].revents)
            continue;
        struct stream *s = stream_of(set[p].fd);
        if (s) {
            ssize_t n = pull(s, 1 << 20);
            if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
                drop_stream(s);
            continue;
        }
        for (int i = 0; i < leftover_count; i++)
            if (leftovers[i] == set[p].fd) {
                ssize_t n = read(set[p].fd, dropped, sizeof dropped);
                if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR)) {
                    close(leftovers[i]);
                    leftovers[i] = leftovers[--leftover_count];
                }
                break;
            }
    }
}

int64_t exec_next_deadline(void) {
    int64_t next = INT64_MAX;
    for (int i = 0; i < MAX_EXECS; i++)
        if (commands[i].pid > 0 && !commands[i].timed_out && commands[i].deadline < next)
            next = commands[i].deadline;
    return next;
}

void exec_check_deadlines(int64_t now) {
    for (int i = 0; i < MAX_EXECS; i++)
        if (commands[i].pid > 0 && !commands[i].timed_out && commands[i].deadline <= now) {
            commands[i].timed_out = 1;
            kill_tree(commands[i].pid);
        }
}
