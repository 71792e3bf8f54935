/* The first process of a command or a shell: made from a request, confined, started. */
#define _GNU_SOURCE
#include <errno.h>
#include <grp.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "box.h"

/* Runs in PID 1's memory while PID 1 waits (vfork), so it may only make system calls and set `error`. */
static int child_main(void *argument) {
    struct launch *launch = argument;
    char candidate[PATH_MAX];
    sigset_t none;
    sigemptyset(&none);
    /* the launcher and PID 1 ignore some, and so may whoever started them: nohup, a shell's background */
    for (int number = 1; number < SIGRTMIN; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    syscall(SYS_setpriority, PRIO_PROCESS, 0, 0); /* PID 1 may have come with a better one */
    if (setsid() < 0 || dup2(launch->in, 0) < 0 || dup2(launch->out, 1) < 0 || dup2(launch->err, 2) < 0 ||
        prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
        goto fail;
    if (launch->terminal && (ioctl(0, TIOCSCTTY, 0) || dup2(launch->in, SHELL_TERMINAL) < 0 || dup2(launch->text, SHELL_TEXT) < 0 ||
                             dup2(launch->channel, 0) < 0))
        goto fail;
    gid_t group = launch->gid;
    /* raw calls: a libc's wrappers take its thread locks, which belong to PID 1 */
    if (!launch->single_id && (syscall(SYS_setgroups, launch->uid ? 1 : 0, &group) || syscall(SYS_setresgid, group, group, group) ||
                               confine_keep(launch->uid, launch->gid) || syscall(SYS_setresuid, launch->uid, launch->uid, launch->uid)))
        goto fail;
    if (confine_command(launch->build, launch->single_id))
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

/* Fill a launch from the strings behind a request; `argv` must be freed. 0, or an errno. */
int launch_read(struct launch *launch, const struct exec_request *request, const char **cursor, const char *end,
                const struct box *box) {
    size_t length = (size_t)(end - *cursor);
    if (request->argc > length || request->envc > length)
        return EPROTO;
    char **words = calloc((size_t)request->argc + request->envc + 2, sizeof *words);
    if (!words)
        _exit(12);
    *launch = (struct launch){.argv = words, .envp = words + request->argc + 1, .cwd = next_string(cursor, end),
                              .single_id = box->single_id, .build = box->build && (request->flags & EXEC_BUILD),
                              .uid = request->uid, .gid = request->gid, .in = -1, .out = -1, .err = -1};
    int complete = launch->cwd != NULL;
    for (uint32_t i = 0; complete && i < request->argc; i++)
        complete = (launch->argv[i] = next_string(cursor, end)) != NULL;
    for (uint32_t i = 0; complete && i < request->envc; i++) {
        complete = (launch->envp[i] = next_string(cursor, end)) != NULL;
        if (complete && !strncmp(launch->envp[i], "PATH=", 5))
            launch->path = launch->envp[i] + 5;
    }
    if (complete)
        return 0;
    free(words);
    return EPROTO;
}

/* The process, or -1 with the reason in launch->error. */
pid_t launch_start(struct launch *launch) {
    static char stack[64 * 1024] __attribute__((aligned(16)));
    pid_t pid = clone(child_main, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, launch);
    if (pid < 0)
        launch->error = errno;
    else if (launch->error) {
        waitpid(pid, NULL, 0);
        pid = -1;
    }
    return pid;
}
