/* PID 1 of a sandbox: answers frames, reaps the dead, keeps deadlines. It ends, and with it everything inside, when the host's
 * end closes or when its lease runs out. It runs as root inside with the few capabilities of the table, cannot be traced, and
 * takes nothing from a workload but bytes from pipes.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "box.h"

static int out_fd;
static char *queue; /* replies that the host has not taken yet */
static size_t queue_start, queue_end, queue_room;
static int frozen;
static int64_t lease_us;

int64_t now_us(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000 + t.tv_nsec / 1000;
}

static void flush_queue(void) {
    while (queue_start < queue_end) {
        ssize_t n = write(out_fd, queue + queue_start, queue_end - queue_start);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0 && errno == EAGAIN)
            return;
        if (n <= 0)
            _exit(0);
        queue_start += (size_t)n;
    }
    queue_start = queue_end = 0;
}

static void enqueue(const void *data, size_t length) {
    if (queue_end + length > queue_room) {
        queue_room = (queue_end + length) * 2;
        queue = realloc(queue, queue_room);
        if (!queue)
            _exit(12);
    }
    if (length)
        memcpy(queue + queue_end, data, length);
    queue_end += length;
}

void reply(uint32_t id, uint32_t type, const void *head, size_t head_length, const void *body, size_t body_length) {
    struct frame header = {(uint32_t)(head_length + body_length), id, type};
    enqueue(&header, sizeof header);
    enqueue(head, head_length);
    enqueue(body, body_length);
    flush_queue();
}

void reply_errno(uint32_t id, int error) {
    int32_t value = error;
    reply(id, F_REPLY, &value, sizeof value, NULL, 0);
}

/* As reply, but waits until the host has taken it: for long transfers out of a frozen sandbox, where nothing else is due. */
void reply_blocking(uint32_t id, uint32_t type, const void *head, size_t head_length, const void *body, size_t body_length) {
    reply(id, type, head, head_length, body, body_length);
    while (queue_start < queue_end) {
        struct pollfd wait = {out_fd, POLLOUT, 0};
        poll(&wait, 1, -1);
        flush_queue();
    }
}

static void handle(const struct frame *frame, const char *payload, const struct box *box) {
    switch (frame->type) {
    case F_EXEC:
        if (frozen)
            reply_errno(frame->id, EPERM);
        else
            exec_start(frame->id, payload, frame->length, box);
        break;
    case F_PUT:
        files_put(frame->id, payload, frame->length);
        break;
    case F_REMOVE:
        files_remove(frame->id, payload, frame->length);
        break;
    case F_GET:
        files_get(frame->id, payload, frame->length);
        break;
    case F_PEEK:
        exec_peek(frame->id, payload, frame->length);
        break;
    case F_KILL:
        exec_kill(frame->id);
        shell_interrupt(frame->id);
        break;
    case F_KILL_ALL:
        exec_kill_everything();
        reply_errno(frame->id, 0);
        break;
    case F_LEASE: {
        uint32_t seconds;
        if (frame->length != sizeof seconds) {
            reply_errno(frame->id, EPROTO);
            break;
        }
        memcpy(&seconds, payload, sizeof seconds);
        lease_us = (int64_t)seconds * 1000000;
        reply_errno(frame->id, 0);
        break;
    }
    case F_SHELL:
        if (frozen)
            reply_errno(frame->id, EPERM);
        else
            shell_open(frame->id, payload, frame->length, box);
        break;
    case F_LINE:
        shell_line(frame->id, payload, frame->length);
        break;
    case F_TYPE:
        shell_type(frame->id, payload, frame->length);
        break;
    case F_CLOSE:
        shell_close(frame->id, payload, frame->length);
        break;
    case F_STILL:
        reply_errno(frame->id, stop_everything());
        break;
    case F_MOVE:
        move_everything();
        reply_errno(frame->id, 0);
        break;
    case F_FREEZE:
        frozen = 1;
        exec_kill_everything();
        reply_errno(frame->id, 0);
        break;
    case F_EXPORT:
        if (frozen)
            files_export(frame->id, payload, frame->length, box);
        else
            reply_errno(frame->id, EPERM);
        break;
    case F_LISTEN:
        if (frozen)
            reply_errno(frame->id, EPERM);
        else
            listen_hand_over(frame->id, payload, frame->length, box, queue_start == queue_end);
        break;
    default:
        reply_errno(frame->id, ENOSYS);
    }
}

/* Read what is there and answer every whole frame. Returns 0 when the host's end has closed. */
static int read_frames(int fd, const struct box *box) {
    static char *buffer;
    static size_t used, room;
    if (room - used < 4096) {
        room = room ? room * 2 : 16384;
        buffer = realloc(buffer, room);
        if (!buffer)
            _exit(12);
    }
    ssize_t n = read(fd, buffer + used, room - used - 1);
    if (n == 0)
        return 0;
    if (n < 0)
        return errno == EAGAIN || errno == EINTR;
    used += (size_t)n;
    size_t start = 0;
    while (used - start >= sizeof(struct frame)) {
        struct frame frame;
        memcpy(&frame, buffer + start, sizeof frame);
        if (frame.length > MAX_FRAME)
            return 0; /* the host never sends that: the stream is lost */
        if (used - start - sizeof frame < frame.length) {
            if (room < sizeof frame + frame.length + 4096) {
                room = sizeof frame + frame.length + 8192;
                memmove(buffer, buffer + start, used - start);
                used -= start;
                start = 0;
                buffer = realloc(buffer, room);
                if (!buffer)
                    _exit(12);
            }
            break;
        }
        char *payload = buffer + start + sizeof frame;
        char saved = payload[frame.length];
        payload[frame.length] = 0; /* strings in a payload end, whatever it holds */
        handle(&frame, payload, box);
        payload[frame.length] = saved;
        start += sizeof frame + frame.length;
    }
    memmove(buffer, buffer + start, used - start);
    used -= start;
    if (room > (1u << 20) && used < 4096) { /* give a large transfer's memory back */
        room = 16384;
        char *smaller = malloc(room);
        if (!smaller)
            _exit(12);
        memcpy(smaller, buffer, used);
        free(buffer);
        buffer = smaller;
    }
    return 1;
}

_Noreturn void resident_run(const struct box *box) {
    if (getpid() != 1)
        _exit(2); /* elsewhere "every process but me" would be somebody else's processes */
    sigset_t set;
    struct pollfd polls[4 + 4 * MAX_EXECS + 2 * MAX_SHELLS];
    sigemptyset(&set);
    sigaddset(&set, SIGCHLD);
    sigprocmask(SIG_BLOCK, &set, NULL);
    signal(SIGPIPE, SIG_IGN);
    int signals = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
    out_fd = box->socket_out;
    fcntl(box->socket_in, F_SETFL, fcntl(box->socket_in, F_GETFL) | O_NONBLOCK);
    fcntl(out_fd, F_SETFL, fcntl(out_fd, F_GETFL) | O_NONBLOCK);
    fcntl(box->socket_in, F_SETFD, FD_CLOEXEC);
    fcntl(out_fd, F_SETFD, FD_CLOEXEC);
    files_make_workdir(box);
    uint32_t protocol = PROTOCOL;
    reply(0, F_HELLO, &protocol, sizeof protocol, NULL, 0);
    lease_us = (int64_t)box->lease_s * 1000000;
    int64_t heard = now_us();
    for (;;) {
        int used = 0;
        polls[used++] = (struct pollfd){signals, POLLIN, 0};
        polls[used++] = (struct pollfd){box->socket_in, POLLIN, 0};
        if (out_fd != box->socket_in || queue_start < queue_end) {
            if (out_fd == box->socket_in)
                polls[1].events |= POLLOUT;
            else
                polls[used++] = (struct pollfd){out_fd, queue_start < queue_end ? POLLOUT : 0, 0};
        }
        int pipes = used;
        used = exec_poll_set(polls, used);
        int terminals = used;
        used = shell_poll_set(polls, used);
        int64_t now = now_us(), until = heard + lease_us, deadline = exec_next_deadline(), line = shell_next_deadline();
        if (line < deadline)
            deadline = line;
        if (deadline < until)
            until = deadline;
        int wait = until <= now ? 0 : until - now > 1000000000 ? 1000000 : (int)((until - now + 999) / 1000);
        if (poll(polls, (nfds_t)used, wait) < 0 && errno != EINTR)
            _exit(1);
        if (pipes > 2 && polls[2].revents & (POLLERR | POLLHUP))
            _exit(0); /* nobody reads us any more */
        if (queue_start < queue_end)
            flush_queue();
        exec_poll_done(polls, pipes, terminals);
        shell_poll_done(polls, terminals, used);
        if (polls[0].revents) {
            struct signalfd_siginfo info[16];
            while (read(signals, info, sizeof info) > 0)
                ;
            exec_reap();
        }
        now = now_us();
        exec_check_deadlines(now);
        shell_check_deadlines(now);
        if (polls[1].revents & (POLLIN | POLLHUP | POLLERR)) {
            heard = now;
            if (!read_frames(box->socket_in, box))
                _exit(0);
        } else if (now - heard > lease_us)
            _exit(0);
    }
}
