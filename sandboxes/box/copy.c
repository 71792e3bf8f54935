/* A copy of an upper layer: every file of it as it is, with owners, times, links, attributes, and what the overlay marks as deleted
 * or replaced. Nothing is followed. The sandbox stands still meanwhile, and what it can have planted (links, FIFOs, bottomless
 * trees) leads nowhere.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <sys/xattr.h>
#include <unistd.h>

#include "box.h"

#define MAX_DEPTH 200
#define BUFFER (256 * 1024)

struct linked { /* a file of several names, copied once */
    dev_t device;
    ino_t inode;
    char *path; /* below the top of the copy */
};

static struct linked *linked;
static int linked_count, linked_room;
static char path[PATH_MAX];
static int top;

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
    /* the mode last: a change of owner takes set-user-ID bits away */
    if (!error && (fchown(to, st->st_uid, st->st_gid) || fchmod(to, st->st_mode & 07777) || futimens(to, times)))
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

static int copy_file(int from_directory, int to_directory, const char *name, const struct stat *st) {
    if (st->st_nlink > 1)
        for (int i = 0; i < linked_count; i++)
            if (linked[i].device == st->st_dev && linked[i].inode == st->st_ino)
                return linkat(top, linked[i].path, to_directory, name, 0) ? errno : 0;
    int from = openat(from_directory, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (from < 0)
        return errno;
    int to = openat(to_directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600), error = to < 0 ? errno : 0;
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

static int copy_directory(int from, int to, int depth);

static int copy_entry(int from, int to, const char *name, int depth) {
    char target[PATH_MAX];
    struct stat st;
    if (fstatat(from, name, &st, AT_SYMLINK_NOFOLLOW))
        return errno;
    if (S_ISREG(st.st_mode))
        return copy_file(from, to, name, &st);
    if (S_ISDIR(st.st_mode)) {
        int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
        if (mkdirat(to, name, 0700))
            return errno;
        int source = openat(from, name, flags), copy = openat(to, name, flags);
        int error = source < 0 || copy < 0 ? errno : copy_directory(source, copy, depth + 1);
        if (!error)
            error = copy_metadata(source, copy, &st);
        if (source >= 0)
            close(source);
        if (copy >= 0)
            close(copy);
        return error;
    }
    if (S_ISLNK(st.st_mode)) {
        ssize_t n = readlinkat(from, name, target, sizeof target - 1);
        if (n < 0)
            return errno;
        target[n] = 0;
        if (symlinkat(target, to, name))
            return errno;
    } else if (S_ISFIFO(st.st_mode) || (S_ISCHR(st.st_mode) && st.st_rdev == makedev(0, 0))) { /* the latter: deleted */
        if (mknodat(to, name, st.st_mode, 0))
            return errno;
        if (S_ISCHR(st.st_mode))
            return 0;
        if (fchmodat(to, name, st.st_mode & 07777, 0))
            return errno;
    } else {
        return 0; /* a socket has no life without its process */
    }
    struct timespec times[2] = {st.st_atim, st.st_mtim};
    return fchownat(to, name, st.st_uid, st.st_gid, AT_SYMLINK_NOFOLLOW) || utimensat(to, name, times, AT_SYMLINK_NOFOLLOW) ? errno : 0;
}

static int copy_directory(int from, int to, int depth) {
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
        error = copy_entry(from, to, item->d_name, depth);
        path[length] = 0;
    }
    if (!error && !item)
        error = errno;
    closedir(directory);
    return error;
}

int copy_tree(int from, int to) {
    struct stat st;
    path[0] = 0;
    top = to;
    if (fstat(from, &st))
        return errno;
    int error = copy_directory(from, to, 0);
    return error ? error : copy_metadata(from, to, &st);
}
