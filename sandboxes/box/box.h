/* gymsmith-box: one static program with two roles.
 *
 *   launcher   one per worker, single-threaded: makes sandboxes out of namespaces on request (launcher.c, root.c, confine.c,
 *              copy.c)
 *   resident   PID 1 of every sandbox, under any provider: runs commands and shells and moves files on request (resident.c,
 *              start.c, stream.c, exec.c, shell.c, tree.c, files.c, export.c)
 *
 * The wire formats below are mirrored in sandboxes/launcher.py and sandboxes/resident.py. All integers are little-endian and
 * both ends run on one machine, so a layout change is one commit; PROTOCOL is checked when a sandbox says hello.
 */
#ifndef GYMSMITH_BOX_H
#define GYMSMITH_BOX_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PROTOCOL 2
#define MAX_FRAME (64u << 20)
#define MAX_EXECS 64
#define MAX_SHELLS 8

/* ---- frames between the host and a resident: header, then `length` bytes ---- */

struct frame {
    uint32_t length;
    uint32_t id;
    uint32_t type;
};

enum { /* host -> resident */
    F_EXEC = 1, F_PUT = 2, F_GET = 3, F_KILL = 4, F_FREEZE = 5, F_EXPORT = 6, F_REMOVE = 7, F_LISTEN = 40,
    F_PEEK = 8, F_KILL_ALL = 9, F_LEASE = 10, F_SHELL = 11, F_LINE = 12, F_TYPE = 13, F_CLOSE = 14, F_STILL = 15, F_MOVE = 16,
    /* resident -> host */
    F_HELLO = 64, F_FAILED = 65, F_EXIT = 66, F_REPLY = 67, F_CHUNK = 68,
};

struct exec_request { /* then: cwd \0, argv \0 ..., environment \0 ..., stdin bytes */
    uint32_t timeout_ms, output_cap, uid, gid, flags, argc, envc, stdin_length; /* timeout_ms 0: no deadline */
};
enum { EXEC_SPLIT = 1, EXEC_BUILD = 2, START_CHDIR = 1 << 16 };

struct exec_reply { /* then: output bytes, stderr bytes */
    int32_t wait_status;
    uint32_t start_errno, timed_out; /* START_CHDIR is added when it is about the directory */
    uint32_t output_length, stderr_length, output_head, stderr_head;
    uint32_t state; /* OUTCOME_... */
    uint64_t output_total, stderr_total, wall_us, cpu_us;
};

enum { OUTCOME_FINAL = 0, OUTCOME_RUNNING = 1, OUTCOME_SHELL_ENDED = 2 };

/* F_PEEK: the id of an exec, or of a shell's line, which then gives up what it has printed so far. F_CLOSE: the id of the shell.
 * F_LEASE: seconds. F_SHELL: an exec_request without argv and stdin, whose timeout_ms holds the terminal's size as
 * rows << 16 | columns. F_TYPE: the id of the shell, then bytes. */
struct line_request { /* then: the text */
    uint32_t shell, timeout_ms, output_cap;
};

struct put_file { /* then: path \0, data (a link's target); the mode's type bits say file (or none), directory or link */
    uint32_t mode, uid, gid, path_length;
    uint64_t data_length;
};

struct get_request { /* then: path \0 */
    uint64_t max_bytes;
};

struct listen_request { /* then: path \0 of a socket to hand the listener over, empty: over the one we speak on */
    uint32_t port;
};

struct export_request { /* then: paths, each ended by \0 */
    uint64_t max_bytes;
    uint32_t max_files;
};

struct export_entry { /* then: path without leading slash, then `size` bytes of content or link target */
    uint32_t type, mode, uid, gid, path_length, opaque;
    uint64_t size;
    int64_t mtime_ns;
};

/* ---- requests to the launcher: one datagram each, descriptors beside it ---- */

enum { L_CREATE = 1, L_KILL = 2, L_SNAPSHOT = 3, L_DISCARD = 4 };
enum { L_MAP_ME = 16, L_READY = 17, L_DEAD = 18, L_BROKEN = 19, L_COPIED = 20 };
enum { CREATE_BUILD = 1, CREATE_HOST_NETWORK = 2 };

struct create_request { /* then: workdir \0, upper \0, work \0, layers \0 ..., (source \0 target \0) ... */
    uint32_t type, id, flags, processes, open_files, lease_s, workdir_uid, workdir_gid;
    uint32_t layers, binds, groups, group_version;
    uint64_t disk_bytes, inodes, data_bytes, file_bytes;
};

struct snapshot_request { /* L_SNAPSHOT: copy the upper layer of sandbox `id` to a new tmpfs snapshots/`number` */
    uint32_t type, id, number, padding;
    uint64_t disk_bytes, inodes;
};

struct launcher_event { /* then, for L_BROKEN: a text */
    uint32_t type, id;
    int32_t value;
};

/* ---- who maps what ---- */

enum map_mode { MAP_ROOT, MAP_SUBORDINATE, MAP_SINGLE };

struct box { /* what a sandbox needs to know about itself once it runs */
    int socket_in, socket_out;
    int upper; /* directory that collects writes; -1: none, export the merged view */
    int build;
    int single_id; /* this machine maps one id only: commands cannot change theirs */
    uint32_t lease_s, workdir_uid, workdir_gid;
    const char *workdir;
};

/* root.c: make the root file system; on failure names the step in *step and returns -1 with errno */
int root_prepare_launcher(const char *scratch, enum map_mode mode);
int root_enter(const struct create_request *request, const char *strings, enum map_mode mode, uint32_t shift,
               int *upper_fd, const char **step);
int root_bind_index(const char *source);
int root_snapshot(uint32_t number, uint64_t disk_bytes, uint64_t inodes);
int root_fill_snapshot(uint32_t number, int upper);
void root_discard(uint32_t number);

/* confine.c */
int confine_limits(const struct create_request *request, const char **step);
int confine_resident(int build, const char **step);
#define EXAMINER_UID 1001 /* USERS["examiner"] in base.py */
#define EXAMINER_GID 1002
int confine_keep(uint32_t uid, uint32_t gid);
int confine_command(int build, int single_id);
int confine_filter(void);
int loopback_up(void);

/* resident.c */
_Noreturn void resident_run(const struct box *box);
void reply(uint32_t id, uint32_t type, const void *head, size_t head_length, const void *body, size_t body_length);
void reply_errno(uint32_t id, int error);
void reply_blocking(uint32_t id, uint32_t type, const void *head, size_t head_length, const void *body, size_t body_length);
int64_t now_us(void);

/* stream.c: the first `head` bytes that came stay, the rest of `cap` is a ring */
struct stream {
    int fd;
    char *bytes;
    uint32_t cap, head;
    uint64_t total;
};
void stream_open(struct stream *s, int fd, uint32_t cap);
void stream_close(struct stream *s);
void stream_free(struct stream *s);
ssize_t stream_pull(struct stream *s, size_t limit);
void stream_put(struct stream *s, const char *data, size_t length);
uint32_t stream_copy(const struct stream *s, char *to);
struct rusage;
void reply_outcome(uint32_t id, struct exec_reply *outcome, const struct stream *output, const struct stream *err,
                   const struct rusage *usage);

/* start.c */
enum { SHELL_TERMINAL = 7, SHELL_TEXT = 8 }; /* descriptors of a shell; its standard input is the channel */
struct launch {
    char **argv, **envp;
    const char *cwd, *path;
    int in, out, err, build, single_id;
    int terminal, text, channel; /* of a shell: its end of the terminal is `in`, `out` and `err`, too */
    uint32_t uid, gid;
    volatile int error;
};
int launch_read(struct launch *launch, const struct exec_request *request, const char **cursor, const char *end,
                const struct box *box);
pid_t launch_start(struct launch *launch);

/* exec.c */
struct pollfd;
void exec_start(uint32_t id, const char *payload, size_t length, const struct box *box);
void exec_peek(uint32_t id, const char *payload, size_t length);
void exec_kill(uint32_t id);
void exec_reap(void);
void exec_kill_everything(void);
int exec_poll_set(struct pollfd *set, int used);
void exec_poll_done(const struct pollfd *set, int from, int until);
int64_t exec_next_deadline(void);
void exec_check_deadlines(int64_t now);

/* shell.c */
void shell_open(uint32_t id, const char *payload, size_t length, const struct box *box);
void shell_line(uint32_t id, const char *payload, size_t length);
void shell_type(uint32_t id, const char *payload, size_t length);
void shell_close(uint32_t id, const char *payload, size_t length);
void shell_take(uint32_t id, uint32_t line);
void shell_interrupt(uint32_t line);
void shell_exited(pid_t pid, int status);
int shell_poll_set(struct pollfd *set, int used);
void shell_poll_done(const struct pollfd *set, int from, int until);
int64_t shell_next_deadline(void);
void shell_check_deadlines(int64_t now);

/* tree.c */
void kill_tree(pid_t top);
int list_children(pid_t parent, pid_t *list, int room);
int stop_everything(void);
void move_everything(void);

/* copy.c: copies a tree of an upper layer, as it is; 0 or an errno */
int copy_tree(int from, int to);

/* files.c */
int open_below(int root, const char *path, uint64_t flags, uint64_t resolve);
int root_fd(void);
void files_put(uint32_t id, const char *payload, size_t length);
void files_remove(uint32_t id, const char *payload, size_t length);
void files_get(uint32_t id, const char *payload, size_t length);
void files_make_workdir(const struct box *box);

/* listen.c */
void listen_hand_over(uint32_t id, const char *payload, size_t length, const struct box *box, int quiet);

/* export.c */
void files_export(uint32_t id, const char *payload, size_t length, const struct box *box);

#endif
