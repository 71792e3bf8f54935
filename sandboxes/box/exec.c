/* Commands: start, collect output with a cap, end by exit or by deadline together with everything they started.
 *
 * A command's first process is made the reaper of its orphans before it starts, so every process it ever makes, also one with a
 * session of its own, stays below it in the tree until it ends; confine.c refuses to let it resign. At a deadline the tree is
 * stopped first and killed then, so that a fork bomb cannot outrun the walk. A control group for each command would find the same
 * processes, but making and removing one costs as much as the command, and inside a container there is none to be had.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "box.h"

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
    for (int i = 0; i < 2; i++) {
        struct stream *s = &c->stream[i];
        int waiting = 0;
        if (s->fd < 0)
            continue;
        /* what was written before the end counts; what a background process writes from now on does not */
        if (!ioctl(s->fd, FIONREAD, &waiting))
            while (waiting > 0) {
                ssize_t n = stream_pull(s, (size_t)waiting);
                if (n <= 0)
                    break;
                waiting -= (int)n;
            }
        char probe;
        if (read(s->fd, &probe, 1) == 0) {
            stream_close(s);
        } else {
            keep_draining(s->fd);
            s->fd = -1;
        }
    }
    reply_outcome(c->id, &result, &c->stream[0], &c->stream[1], usage);
    stream_free(&c->stream[0]);
    stream_free(&c->stream[1]);
    c->pid = 0;
}

/* What a command has printed so far. */
void exec_peek(uint32_t id, const char *payload, size_t length) {
    uint32_t asked;
    if (length != sizeof asked)
        return reply_errno(id, EPROTO);
    memcpy(&asked, payload, sizeof asked);
    for (int i = 0; i < MAX_EXECS; i++)
        if (commands[i].pid > 0 && commands[i].id == asked) {
            struct exec_reply state = {.state = OUTCOME_RUNNING, .wall_us = (uint64_t)(now_us() - commands[i].started)};
            return reply_outcome(id, &state, &commands[i].stream[0], &commands[i].stream[1], NULL);
        }
    shell_take(id, asked);
}

/* ---- starting ---- */

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
    struct launch launch;
    int error = request.argc < 1 ? EPROTO : launch_read(&launch, &request, &cursor, end, box);
    if (error)
        return reply_errno(id, error);
    if ((size_t)(end - cursor) != request.stdin_length) {
        free(launch.argv);
        return reply_errno(id, EPROTO);
    }
    int split = request.flags & EXEC_SPLIT, out[2] = {-1, -1}, err[2] = {-1, -1};
    *c = (struct command){.id = id, .started = now_us(), .stream = {{.fd = -1}, {.fd = -1}}};
    launch.in = open_input(cursor, request.stdin_length);
    if (launch.in < 0 || pipe2(out, O_CLOEXEC | O_NONBLOCK) || (split && pipe2(err, O_CLOEXEC | O_NONBLOCK)))
        launch.error = errno;
    if (!launch.error) {
        /* the command's own end must block as every program expects */
        fcntl(out[1], F_SETFL, 0);
        if (split)
            fcntl(err[1], F_SETFL, 0);
        launch.out = out[1];
        launch.err = split ? err[1] : out[1];
        c->pid = launch_start(&launch);
    }
    if (launch.in >= 0)
        close(launch.in);
    if (out[1] >= 0)
        close(out[1]);
    if (err[1] >= 0)
        close(err[1]);
    free(launch.argv);
    if (launch.error) {
        if (out[0] >= 0)
            close(out[0]);
        if (err[0] >= 0)
            close(err[0]);
        return finish(c, 0, launch.error, NULL);
    }
    int ends[2] = {out[0], err[0]};
    for (int i = 0; i < 1 + !!split; i++)
        stream_open(&c->stream[i], ends[i], request.output_cap);
    c->deadline = request.timeout_ms ? c->started + (int64_t)request.timeout_ms * 1000 : INT64_MAX;
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
    shell_exited(pid, status);
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
            ssize_t n = stream_pull(s, 1 << 20);
            if (n == 0 || (n < 0 && errno != EAGAIN && errno != EINTR))
                stream_close(s);
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
