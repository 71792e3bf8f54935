/* Shells: an interactive bash (or sh) on a terminal of its own, which is handed one text after the other and stays.
 *
 * Texts do not come over the terminal, which belongs to the commands. The shell's standard input is a socket, the channel; on it
 * come two short lines for each text: one that evaluates the text out of a memory file, one that reports its status. Commands
 * inherit neither. What comes back on the channel counts only when the kernel says that the shell process itself sent it
 * (SO_PASSCRED) and when it names the number drawn for this text: no command, however it got hold of a descriptor, can speak for
 * the shell, and no earlier text for a later one. Being interactive is what makes an interrupt end a whole text, with all its
 * loops and functions, and not the shell.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <termios.h>
#include <unistd.h>

#include "box.h"

#define MAX_SPARED 256
#define DRAIN_BYTES (256 * 1024) /* more than a terminal holds */
#define GRACE_US 250000          /* from an interrupt to the end of a shell that does not come back */
#define REMIND_US 20000
#ifndef TIOCGPTPEER
#define TIOCGPTPEER 0x5441
#endif

/* A report begins with an empty line: after some syntax errors bash misreads the next word, whatever it is, and nothing but that.
 * A prompt would be output; a text sees the status of the one before it as $?. */
static const char bash_setup[] = "unset PS1 PS2; PS1= PS2= _gs_s=0; _gs_r() { return $1; }; shopt -s expand_aliases; set +o history; "
                                 "unset PROMPT_COMMAND HISTFILE; trap - TERM\n";
static const char bash_eval[] = "{ IFS= \\builtin read -r -d '' -u 8 _gs_t; } 2>/dev/null; _gs_r $_gs_s 2>/dev/null; "
                                "\\builtin eval \"$_gs_t\" 0<&7 7<&- 8<&-\n";
static const char bash_report[] = "\n{ _gs_s=$?; \\builtin printf '%%s %%s\\n' %s $_gs_s >&0; } 2>/dev/null\n";
static const char sh_setup[] = "unset PS1 PS2; PS1= PS2= _gs_s=0; _gs_r() { return $1; }\n";
static const char sh_eval[] = "{ _gs_t=; while IFS= read -r _gs_l <&8; do _gs_t=\"$_gs_t$_gs_l\n\"; done; _gs_r $_gs_s; } 2>/dev/null; "
                              "command eval \"$_gs_t\" 0<&7 7<&- 8<&-\n";
static const char sh_report[] = "\n{ _gs_s=$?; command printf '%%s %%s\\n' %s $_gs_s >&0; } 2>/dev/null\n";

struct shell {
    uint32_t id, line; /* the request that opened it; the one whose text runs, 0: none */
    pid_t pid;         /* 0: free slot */
    int channel, text, bash, timed_out;
    int64_t started, deadline, remind; /* INT64_MAX: none */
    char nonce[33], said[64];
    size_t said_length;
    struct stream output; /* its descriptor is our end of the terminal */
    pid_t spared[MAX_SPARED]; /* what earlier texts left in the background */
    int spared_count;
};

static struct shell shells[MAX_SHELLS];

static struct shell *shell_of(uint32_t id) {
    for (int i = 0; i < MAX_SHELLS; i++)
        if (shells[i].pid > 0 && shells[i].id == id)
            return &shells[i];
    return NULL;
}

static void forget(struct shell *s) {
    stream_close(&s->output);
    stream_free(&s->output);
    close(s->channel);
    close(s->text);
    s->pid = 0;
}

static int say(const struct shell *s, const char *text) {
    return send(s->channel, text, strlen(text), MSG_NOSIGNAL | MSG_DONTWAIT) == (ssize_t)strlen(text) ? 0 : -1;
}

static int ask_status(const struct shell *s) {
    char text[256];
    snprintf(text, sizeof text, s->bash ? bash_report : sh_report, s->nonce);
    return say(s, text);
}

/* The text at hand has come to its end, or the shell has. */
static void finish(struct shell *s, int wait_status, uint32_t state) {
    struct exec_reply result = {.wait_status = s->timed_out ? SIGKILL : wait_status, .timed_out = (uint32_t)s->timed_out,
                                .state = state, .wall_us = (uint64_t)(now_us() - s->started)};
    uint32_t cap = s->output.cap;
    int terminal = s->output.fd;
    /* reading until there is nothing brings everything that was written before: the kernel flushes a terminal's buffers then */
    for (uint64_t until = s->output.total + DRAIN_BYTES; s->output.total < until && stream_pull(&s->output, 1 << 20) > 0;)
        ;
    reply_outcome(s->line, &result, &s->output, NULL, NULL);
    stream_free(&s->output);
    stream_open(&s->output, terminal, cap);
    s->line = 0;
    s->timed_out = 0;
    s->deadline = s->remind = INT64_MAX;
}

/* What the text of that request has printed since it was last asked for; it is not told again at its end. */
void shell_take(uint32_t id, uint32_t line) {
    for (int i = 0; line && i < MAX_SHELLS; i++) {
        struct shell *s = &shells[i];
        if (s->pid <= 0 || s->line != line)
            continue;
        struct exec_reply state = {.state = OUTCOME_RUNNING, .wall_us = (uint64_t)(now_us() - s->started)};
        uint32_t cap = s->output.cap;
        int terminal = s->output.fd;
        reply_outcome(id, &state, &s->output, NULL, NULL);
        stream_free(&s->output);
        stream_open(&s->output, terminal, cap);
        return;
    }
    reply_errno(id, ESRCH);
}

/* ---- opening ---- */

static int open_terminal(const struct exec_request *request, const struct box *box, int *slave) {
    struct winsize size = {.ws_row = (unsigned short)(request->timeout_ms >> 16), .ws_col = (unsigned short)request->timeout_ms};
    struct termios modes;
    int unlocked = 0, master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_NONBLOCK | O_CLOEXEC);
    if (master < 0)
        return -1;
    *slave = -1;
    if (ioctl(master, TIOCSPTLCK, &unlocked) || (*slave = ioctl(master, TIOCGPTPEER, O_RDWR | O_NOCTTY | O_CLOEXEC)) < 0 ||
        tcgetattr(*slave, &modes))
        goto fail;
    modes.c_lflag &= ~(tcflag_t)(ECHO | ECHOE | ECHOK | ECHONL | ECHOCTL | ECHOKE);
    modes.c_oflag &= ~(tcflag_t)OPOST; /* bytes as they were printed */
    if (tcsetattr(*slave, TCSANOW, &modes) || ioctl(*slave, TIOCSWINSZ, &size) ||
        /* /dev/stderr and its like lead to the terminal's file, which the commands must be able to open */
        (!box->single_id && fchown(*slave, request->uid, (gid_t)-1)))
        goto fail;
    return master;
fail:
    if (*slave >= 0)
        close(*slave);
    close(master);
    return -1;
}

static int high(int fd) { /* out of the way of the descriptors that a shell gets */
    int moved = fcntl(fd, F_DUPFD_CLOEXEC, 16);
    close(fd);
    return moved;
}

void shell_open(uint32_t id, const char *payload, size_t length, const struct box *box) {
    static char *bash[] = {"bash", "--noprofile", "--norc", "--noediting", "+m", "-i", NULL}, *sh[] = {"sh", "-i", NULL};
    struct exec_request request;
    struct launch launch;
    const char *cursor = payload + sizeof request;
    struct shell *s = NULL;
    int pair[2], slave = -1, master, on = 1, error;
    if (length < sizeof request)
        return reply_errno(id, EPROTO);
    memcpy(&request, payload, sizeof request);
    for (int i = 0; i < MAX_SHELLS && !s; i++)
        if (!shells[i].pid)
            s = &shells[i];
    if (!s)
        return reply_errno(id, EAGAIN);
    if (request.argc || (error = launch_read(&launch, &request, &cursor, payload + length, box)))
        return reply_errno(id, EPROTO);
    if ((master = open_terminal(&request, box, &slave)) < 0) {
        error = errno;
        free(launch.argv);
        return reply_errno(id, error);
    }
    int text = memfd_create("text", MFD_CLOEXEC);
    if (text < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair))
        _exit(12);
    setsockopt(pair[0], SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
    fcntl(pair[0], F_SETFL, O_NONBLOCK);
    char **words = launch.argv;
    launch.in = launch.out = launch.err = slave = high(slave);
    launch.text = text = high(text);
    launch.channel = pair[1] = high(pair[1]);
    launch.terminal = 1;
    launch.argv = bash;
    pid_t pid = launch_start(&launch);
    if (pid < 0 && launch.error == ENOENT) {
        launch.argv = sh;
        launch.error = 0;
        pid = launch_start(&launch);
    }
    free(words);
    close(slave);
    close(pair[1]);
    if (pid < 0) {
        close(pair[0]);
        close(text);
        close(master);
        int32_t value = launch.error;
        return reply(id, F_REPLY, &value, sizeof value, NULL, 0);
    }
    *s = (struct shell){.id = id, .pid = pid, .channel = pair[0], .text = text, .bash = launch.argv == bash,
                        .deadline = INT64_MAX, .remind = INT64_MAX};
    stream_open(&s->output, master, request.output_cap);
    say(s, s->bash ? bash_setup : sh_setup);
    reply_errno(id, 0);
}

/* ---- running ---- */

void shell_line(uint32_t id, const char *payload, size_t length) {
    struct line_request request;
    unsigned char random[16];
    if (length < sizeof request)
        return reply_errno(id, EPROTO);
    memcpy(&request, payload, sizeof request);
    payload += sizeof request;
    length -= sizeof request;
    struct shell *s = shell_of(request.shell);
    if (!s)
        return reply_errno(id, ESRCH);
    if (s->line)
        return reply_errno(id, EBUSY);
    if (getrandom(random, sizeof random, 0) != sizeof random)
        _exit(1);
    for (size_t i = 0; i < sizeof random; i++)
        sprintf(s->nonce + 2 * i, "%02x", random[i]);
    s->line = id;
    s->started = now_us();
    s->deadline = s->started + (int64_t)request.timeout_ms * 1000;
    s->said_length = 0;
    /* what the background printed since the last text belongs to this one, as on any terminal */
    struct stream before = s->output;
    stream_open(&s->output, before.fd, request.output_cap);
    if (before.total) {
        char *kept = malloc(before.cap + 1u);
        if (!kept)
            _exit(12);
        stream_put(&s->output, kept, stream_copy(&before, kept));
        free(kept);
    }
    stream_free(&before);
    s->spared_count = list_children(s->pid, s->spared, MAX_SPARED);
    /* one description of the file, shared with the shell: its place is set here and read on from there */
    if (ftruncate(s->text, 0) || pwrite(s->text, payload, length, 0) != (ssize_t)length ||
        pwrite(s->text, s->bash ? "" : "\n", 1, (off_t)length) != 1 || lseek(s->text, 0, SEEK_SET) ||
        say(s, s->bash ? bash_eval : sh_eval) || ask_status(s))
        kill_tree(s->pid); /* it no longer listens: its end is the answer */
}

void shell_type(uint32_t id, const char *payload, size_t length) {
    struct { int32_t error; uint32_t taken; } answer = {0, 0};
    uint32_t asked;
    if (length < sizeof asked)
        return reply_errno(id, EPROTO);
    memcpy(&asked, payload, sizeof asked);
    payload += sizeof asked;
    length -= sizeof asked;
    struct shell *s = shell_of(asked);
    if (!s) {
        answer.error = ESRCH;
    } else if (length) {
        ssize_t n = write(s->output.fd, payload, length);
        answer.taken = n > 0 ? (uint32_t)n : 0;
        answer.error = n < 0 && errno != EAGAIN ? errno : 0;
        if (s->line && memchr(payload, 3, length)) /* an interrupt: some shells then forget what they were asked */
            s->remind = now_us() + REMIND_US;
    }
    reply(id, F_REPLY, &answer, sizeof answer, NULL, 0);
}

void shell_close(uint32_t id, const char *payload, size_t length) {
    uint32_t asked;
    if (length != sizeof asked)
        return reply_errno(id, EPROTO);
    memcpy(&asked, payload, sizeof asked);
    struct shell *s = shell_of(asked);
    if (s)
        kill_tree(s->pid);
    reply_errno(id, 0);
}

/* The kernel's word for who is speaking; everybody else is not heard. */
static void listen_to(struct shell *s) {
    char data[256];
    union {
        struct cmsghdr align;
        char space[CMSG_SPACE(sizeof(struct ucred))];
    } ancillary;
    for (;;) {
        struct iovec vector = {data, sizeof data};
        struct msghdr message = {.msg_iov = &vector, .msg_iovlen = 1, .msg_control = &ancillary, .msg_controllen = sizeof ancillary};
        ssize_t n = recvmsg(s->channel, &message, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
        if (n <= 0) {
            if (n == 0) { /* nobody holds it any more: no text can be run, none can be reported */
                close(s->channel);
                s->channel = -1;
                kill_tree(s->pid);
            }
            return;
        }
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        struct ucred sender = {.pid = 0};
        if (header && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_CREDENTIALS)
            memcpy(&sender, CMSG_DATA(header), sizeof sender);
        if (sender.pid != s->pid)
            continue;
        for (ssize_t i = 0; i < n; i++) {
            if (data[i] != '\n') {
                if (s->said_length + 1 < sizeof s->said)
                    s->said[s->said_length++] = data[i];
                continue;
            }
            s->said[s->said_length] = 0;
            s->said_length = 0;
            if (s->line && !strncmp(s->said, s->nonce, 32) && s->said[32] == ' ')
                finish(s, (atoi(s->said + 33) & 255) << 8, OUTCOME_FINAL);
        }
    }
}

/* ---- ending ---- */

/* End the text, not the shell: it stands still while everything that this text started dies, and wakes to an interrupt. */
static void interrupt(struct shell *s) {
    pid_t children[MAX_SPARED];
    s->timed_out = 1;
    s->deadline = now_us() + GRACE_US;
    s->remind = now_us() + REMIND_US;
    kill(s->pid, SIGSTOP);
    kill(s->pid, SIGINT);
    int count = list_children(s->pid, children, MAX_SPARED);
    for (int i = 0; i < count; i++) {
        int spared = 0;
        for (int k = 0; k < s->spared_count; k++)
            spared |= s->spared[k] == children[i];
        if (!spared)
            kill_tree(children[i]);
    }
    kill(s->pid, SIGCONT);
}

void shell_interrupt(uint32_t line) {
    for (int i = 0; i < MAX_SHELLS; i++)
        if (shells[i].pid > 0 && shells[i].line == line && !shells[i].timed_out)
            interrupt(&shells[i]);
}

void shell_exited(pid_t pid, int status) {
    for (int i = 0; i < MAX_SHELLS; i++)
        if (shells[i].pid == pid) {
            if (shells[i].line)
                finish(&shells[i], status, OUTCOME_SHELL_ENDED);
            forget(&shells[i]);
        }
}

/* ---- the event loop's view ---- */

int shell_poll_set(struct pollfd *set, int used) {
    for (int i = 0; i < MAX_SHELLS; i++)
        if (shells[i].pid > 0) {
            set[used++] = (struct pollfd){shells[i].output.fd, POLLIN, 0};
            set[used++] = (struct pollfd){shells[i].channel, POLLIN, 0};
        }
    return used;
}

void shell_poll_done(const struct pollfd *set, int from, int until) {
    for (int p = from; p < until; p++) {
        if (!set[p].revents)
            continue;
        for (int i = 0; i < MAX_SHELLS; i++) {
            struct shell *s = &shells[i];
            if (s->pid > 0 && s->channel == set[p].fd)
                listen_to(s);
            else if (s->pid > 0 && s->output.fd == set[p].fd && stream_pull(&s->output, 1 << 20) <= 0 && !(set[p].revents & POLLIN)) {
                /* every end of the terminal is closed: either the shell is about to be reaped, or it gave its terminal up */
                if (kill(s->pid, SIGKILL))
                    continue;
            }
        }
    }
}

int64_t shell_next_deadline(void) {
    int64_t next = INT64_MAX;
    for (int i = 0; i < MAX_SHELLS; i++)
        if (shells[i].pid > 0 && shells[i].line) {
            if (shells[i].deadline < next)
                next = shells[i].deadline;
            if (shells[i].remind < next)
                next = shells[i].remind;
        }
    return next;
}

void shell_check_deadlines(int64_t now) {
    for (int i = 0; i < MAX_SHELLS; i++) {
        struct shell *s = &shells[i];
        if (s->pid <= 0 || !s->line)
            continue;
        if (s->remind <= now) {
            s->remind = INT64_MAX;
            ask_status(s);
        }
        if (s->deadline > now)
            continue;
        if (s->timed_out) {
            s->deadline = INT64_MAX;
            kill_tree(s->pid);
        } else {
            interrupt(s);
        }
    }
}
