/* A copy of an upper layer: every file of it as it is, with owners, times, links, attributes, and what the overlay marks as deleted
 * or replaced. Nothing is followed. The sandbox stands still meanwhile, and what it can have planted (links, FIFOs, bottomless
 * trees) leads nowhere.
 *
 * Large trees are copied by several processes. Each walks the whole tree, which lists alike for all since it stands still, and copies
 * the entries of those runs of RUN that it took. What needs an order is left to the first, when the others are done: files of
 * several names, and the times of directories.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "box.h"

#define MAX_DEPTH 200
#define BUFFER (256 * 1024)
#define RUN 32
#define ALONE (4 * RUN) /* entries, or */
#define LARGE (1 << 20) /* bytes of one file, for which more processes are worth their start */
#define MAX_COPIERS 4

struct linked { /* a file of several names, copied once */
    dev_t device;
    ino_t inode;
    char *path; /* below the top of the copy */
};

static struct linked *linked;
static int linked_count, linked_room;
static char path[PATH_MAX];
static int top, source_top;
static enum { ENTRIES, REST } pass;
static pid_t others[MAX_COPIERS];
static int others_count;
static int64_t seen, taken; /* entries so far; the run that is ours, or the last that was */
static struct shared {      /* between the processes */
    atomic_llong next_run;
    atomic_int several_names; /* some file has */
} *shared;

/* The overlay's own notes about where a file came from would be wrong in a copy; that a directory hides what is below is not. */
static int worth_keeping(const char *name) {
    if (strncmp(name, "trusted.overlay.", 16) && strncmp(name, "user.overlay.", 13))
        return 1;
    const char *last = strrchr(name, '.') + 1;
    return !strcmp(last, "opaque") || !strcmp(last, "whiteout");
}

static int copy_attributes(int from, int to) {
    static char names[65536], value[65536];
    ssize_t length = flistxattr(from, names, sizeof names);
    if (length < 0)
        return errno == ENOTSUP ? 0 : errno;
    for (const char *name = names; name < names + length; name += strlen(name) + 1) {
        if (!worth_keeping(name))
            continue;
        ssize_t n = fgetxattr(from, name, value, sizeof value);
        if (n < 0 && errno == ENODATA)
            continue;
        if (n < 0 || fsetxattr(to, name, value, (size_t)n, 0))
            return errno;
    }
    return 0;
}

static int copy_metadata(int from, int to, const struct stat *st) {
    struct timespec times[2] = {st->st_atim, st->st_mtim};
    int error = copy_attributes(from, to);
    int made_so = S_ISREG(st->st_mode) && !(st->st_mode & 07000);
    /* the mode last: a change of owner takes set-user-ID bits away */
    if (!error && (fchown(to, st->st_uid, st->st_gid) || (!made_so && fchmod(to, st->st_mode & 07777)) || futimens(to, times)))
        error = errno;
    return error;
}

/* From where both descriptors are, `length` bytes. */
static int copy_bytes(int from, int to, off_t length) {
    static char buffer[BUFFER];
    while (length > 0) {
        ssize_t n = read(from, buffer, length < BUFFER ? (size_t)length : BUFFER), done = 0;
        if (n <= 0)
            return n ? errno : EIO;
        for (; done < n;) {
            ssize_t w = write(to, buffer + done, (size_t)(n - done));
            if (w <= 0)
                return w ? errno : ENOSPC;
            done += w;
        }
        length -= n;
    }
    return 0;
}

/* A hole stays a hole, or a sparse file would fill the copy. */
static int copy_sparse(int from, int to, off_t size) {
    for (off_t at = 0; at < size;) {
        off_t data = lseek(from, at, SEEK_DATA);
        if (data < 0 && errno == ENXIO)
            break;
        off_t hole = data < 0 ? -1 : lseek(from, data, SEEK_HOLE);
        if (hole < 0 || lseek(from, data, SEEK_SET) < 0 || lseek(to, data, SEEK_SET) < 0)
            return errno;
        int error = copy_bytes(from, to, hole - data);
        if (error)
            return error;
        at = hole;
    }
    return ftruncate(to, size) ? errno : 0;
}

static int walk(int from, int to, int depth);

/* One more process, from the top. What it cannot be is no loss: the others take its runs. */
static void copy_beside(void) {
    pid_t first = getpid(), pid = fork();
    if (pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != first)
            _exit(EINTR);
        others_count = MAX_COPIERS;
        seen = path[0] = 0;
        taken = -1;
        _exit(walk(source_top, top, 0));
    }
    if (pid > 0)
        others[others_count++] = pid;
}

static void share_the_work(void) {
    cpu_set_t cpus;
    if (others_count || sched_getaffinity(0, sizeof cpus, &cpus))
        return;
    for (int n = CPU_COUNT(&cpus) < MAX_COPIERS ? CPU_COUNT(&cpus) : MAX_COPIERS; n > 1; n--)
        copy_beside();
}

static int copy_file(int from_directory, int to_directory, const char *name, const struct stat *st) {
    if (st->st_nlink > 1)
        for (int i = 0; i < linked_count; i++)
            if (linked[i].device == st->st_dev && linked[i].inode == st->st_ino)
                return linkat(top, linked[i].path, to_directory, name, 0) ? errno : 0;
    if (st->st_size >= LARGE && pass == ENTRIES)
        share_the_work();
    int from = openat(from_directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (from < 0)
        return errno;
    int to = openat(to_directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, st->st_mode & 0777);
    int error = to < 0 ? errno : 0;
    if (!error) {
        int sparse = st->st_blocks * 512 < st->st_size;
        error = sparse ? copy_sparse(from, to, st->st_size) : copy_bytes(from, to, st->st_size);
    }
    if (!error)
        error = copy_metadata(from, to, st);
    if (to >= 0)
        close(to);
    close(from);
    if (!error && st->st_nlink > 1) {
        if (linked_count == linked_room) {
            linked_room = linked_room ? linked_room * 2 : 64;
            linked = realloc(linked, (size_t)linked_room * sizeof *linked);
        }
        if (!linked || !(linked[linked_count].path = strdup(path)))
            _exit(12);
        linked[linked_count].device = st->st_dev;
        linked[linked_count++].inode = st->st_ino;
    }
    return error;
}

/* A socket has no life without its process, and is not copied. */
static int copy_special(int from, int to, const char *name, const struct stat *st) {
    char target[PATH_MAX];
    struct timespec times[2] = {st->st_atim, st->st_mtim};
    if (S_ISLNK(st->st_mode)) {
        ssize_t n = readlinkat(from, name, target, sizeof target - 1);
        if (n < 0)
            return errno;
        target[n] = 0;
        if (symlinkat(target, to, name))
            return errno;
    } else if (S_ISCHR(st->st_mode) && st->st_rdev == makedev(0, 0)) { /* deleted */
        return mknodat(to, name, st->st_mode, 0) ? errno : 0;
    } else if (!S_ISFIFO(st->st_mode) || mknodat(to, name, st->st_mode, 0) || fchmodat(to, name, st->st_mode & 07777, 0)) {
        return S_ISFIFO(st->st_mode) ? errno : 0;
    }
    return fchownat(to, name, st->st_uid, st->st_gid, AT_SYMLINK_NOFOLLOW) || utimensat(to, name, times, AT_SYMLINK_NOFOLLOW) ? errno : 0;
}

/* Whoever comes first makes the directory. */
static int copy_directory(int from, int to, const char *name, int depth) {
    int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
    if (pass == ENTRIES && mkdirat(to, name, 0700) && errno != EEXIST)
        return errno;
    int source = openat(from, name, flags), copy = openat(to, name, flags);
    int error = source < 0 || copy < 0 ? errno : walk(source, copy, depth + 1);
    struct stat st;
    if (!error && pass == REST)
        error = fstat(source, &st) ? errno : copy_metadata(source, copy, &st);
    if (source >= 0)
        close(source);
    if (copy >= 0)
        close(copy);
    return error;
}

static int copy_entry(int from, int to, const char *name) {
    struct stat st;
    if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW))
        return errno;
    int ordered = S_ISREG(st.st_mode) && st.st_nlink > 1;
    if (ordered)
        atomic_store(&shared->several_names, 1);
    if (ordered != (pass == REST))
        return 0;
    return S_ISREG(st.st_mode) ? copy_file(from, to, name, &st) : copy_special(from, to, name, &st);
}

/* The runs are taken in their order, by whoever gets there. */
static int is_ours(void) {
    int64_t run = seen++ / RUN;
    if (seen == ALONE)
        share_the_work();
    while (taken < run)
        taken = atomic_fetch_add(&shared->next_run, 1);
    return taken == run;
}

static int is_directory(int in, const struct dirent *item) {
    struct stat st;
    if (item->d_type != DT_UNKNOWN)
        return item->d_type == DT_DIR;
    return !fstatat(in, item->d_name, &st, AT_SYMLINK_NOFOLLOW) && S_ISDIR(st.st_mode);
}

static int walk(int from, int to, int depth) {
    if (depth > MAX_DEPTH)
        return ENAMETOOLONG;
    int fd = openat(from, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC), error = 0;
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *item;
    size_t length = strlen(path);
    if (!directory)
        return errno;
    while (!error && (errno = 0, item = readdir(directory))) {
        if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, ".."))
            continue;
        if (length + strlen(item->d_name) + 2 > sizeof path) {
            error = ENAMETOOLONG;
            break;
        }
        path[length] = '/';
        strcpy(path + length + (length > 0), item->d_name);
        if (is_directory(fd, item))
            error = copy_directory(from, to, item->d_name, depth);
        else if (pass == REST ? atomic_load(&shared->several_names) : is_ours())
            error = copy_entry(from, to, item->d_name);
        path[length] = 0;
    }
    if (!error && !item)
        error = errno;
    closedir(directory);
    return error;
}

/* The caller is a process of its own for this, with umask 0, and has no other children. */
int copy_tree(int from, int to) {
    struct stat st;
    source_top = from;
    top = to;
    taken = -1;
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (shared == MAP_FAILED || fstat(from, &st))
        return errno;
    int error = walk(from, to, 0);
    for (int i = 0, status; i < others_count; i++)
        if (waitpid(others[i], &status, 0) < 0 || !WIFEXITED(status) || WEXITSTATUS(status))
            error = error ? error : WIFEXITED(status) ? WEXITSTATUS(status) : EINTR;
    pass = REST;
    error = error ? error : walk(from, to, 0);
    return error ? error : copy_metadata(from, to, &st);
}
