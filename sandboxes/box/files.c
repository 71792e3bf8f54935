/* Files in and out. Paths are resolved below the sandbox's root and never through /proc's magic links; PID 1 only ever reads
 * and writes regular files, opened so that a FIFO or device planted in their place cannot hold it up.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/vfs.h>
#include <unistd.h>

#include "box.h"

#define PROC_MAGIC 0x9fa0
#define OPEN_TRIES 1000

/* A rename or mount anywhere on the machine, at the moment of a ".." step, makes the kernel say EAGAIN instead of vouching for the
 * path. On a busy machine that is chance, so it is tried again; who keeps it up is trying to get out. */
int open_below(int root, const char *path, uint64_t flags, uint64_t resolve) {
    struct open_how how = {.flags = flags | O_CLOEXEC, .resolve = resolve | RESOLVE_IN_ROOT | RESOLVE_NO_MAGICLINKS};
    for (int i = 0; i < OPEN_TRIES; i++) {
        int fd = (int)syscall(SYS_openat2, root, path, &how, sizeof how);
        if (fd >= 0 || errno != EAGAIN)
            return fd;
    }
    errno = EXDEV;
    return -1;
}

int root_fd(void) {
    static int fd = -1;
    if (fd < 0)
        fd = open("/", O_PATH | O_DIRECTORY | O_CLOEXEC);
    return fd;
}

/* Open a directory, made with its parents when missing. */
static int open_directory(const char *path, uint32_t uid, uint32_t gid) {
    int fd = open_below(root_fd(), *path ? path : "/", O_PATH | O_DIRECTORY, 0);
    if (fd >= 0 || errno != ENOENT)
        return fd;
    char parent[PATH_MAX];
    if (strlen(path) >= sizeof parent) {
        errno = ENAMETOOLONG;
        return -1;
    }
    strcpy(parent, path);
    size_t length = strlen(parent);
    while (length && parent[length - 1] == '/')
        parent[--length] = 0;
    char *slash = strrchr(parent, '/');
    if (!slash) {
        errno = EINVAL;
        return -1;
    }
    *slash = 0;
    int above = open_directory(parent, uid, gid);
    if (above < 0)
        return -1;
    int made = mkdirat(above, slash + 1, 0755);
    if (!made && (fchownat(above, slash + 1, uid, gid, AT_SYMLINK_NOFOLLOW) && errno != EINVAL))
        made = -1;
    int saved = errno;
    close(above);
    if (made && saved != EEXIST) {
        errno = saved;
        return -1;
    }
    return open_below(root_fd(), path, O_PATH | O_DIRECTORY, 0);
}

void files_make_workdir(const struct box *box) {
    uint32_t uid = box->single_id ? 0 : box->workdir_uid, gid = box->single_id ? 0 : box->workdir_gid;
    mode_t old = umask(0);
    int fd = open_directory(box->workdir, uid, gid);
    umask(old);
    if (fd >= 0)
        close(fd);
}

/* Split off the last name; returns an open parent directory, made when missing, or -1. */
static int open_parent(const char *path, char parent[PATH_MAX], const char **name, const struct put_file *owner) {
    errno = EINVAL;
    if (*path != '/' || strlen(path) >= PATH_MAX)
        return -1;
    strcpy(parent, path);
    char *slash = strrchr(parent, '/');
    *slash = 0;
    *name = path + (slash - parent) + 1;
    if (!**name || !strcmp(*name, ".") || !strcmp(*name, ".."))
        return -1;
    return owner ? open_directory(parent, owner->uid, owner->gid)
                 : open_below(root_fd(), *parent ? parent : "/", O_PATH | O_DIRECTORY, 0);
}

static int put_directory(int parent, const char *name, const struct put_file *file) {
    struct stat st;
    if (mkdirat(parent, name, 0700) && (errno != EEXIST || fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW) || !S_ISDIR(st.st_mode)))
        return errno ? errno : ENOTDIR;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    int error = fd < 0 || (fchown(fd, file->uid, file->gid) && errno != EINVAL) || fchmod(fd, file->mode & 07777) ? errno : 0;
    if (fd >= 0)
        close(fd);
    return error;
}

static int put_one(const struct put_file *file, const char *path, const char *data) {
    char parent[PATH_MAX];
    const char *name;
    int directory = open_parent(path, parent, &name, file);
    if (directory < 0)
        return errno;
    if (S_ISDIR(file->mode)) {
        int error = put_directory(directory, name, file);
        close(directory);
        return error;
    }
    if (S_ISLNK(file->mode)) {
        char target[PATH_MAX];
        snprintf(target, sizeof target, "%.*s", (int)(file->data_length < sizeof target ? file->data_length : sizeof target - 1), data);
        unlinkat(directory, name, 0);
        int error = symlinkat(target, directory, name) ||
                    (fchownat(directory, name, file->uid, file->gid, AT_SYMLINK_NOFOLLOW) && errno != EINVAL) ? errno : 0;
        close(directory);
        return error;
    }
    /* always a new inode: whatever stood there (link, FIFO, hard link to something else) is left behind, not written to */
    int fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0 && errno == EEXIST && !unlinkat(directory, name, 0))
        fd = openat(directory, name, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
    int error = fd < 0 ? errno : 0;
    close(directory);
    uint64_t left = file->data_length;
    while (!error && left) {
        ssize_t n = write(fd, data, left);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0) {
            error = n < 0 ? errno : EIO;
            break;
        }
        data += n;
        left -= (uint64_t)n;
    }
    if (!error && fchown(fd, file->uid, file->gid) && errno != EINVAL) /* EINVAL: an id that this machine cannot map */
        error = errno;
    if (!error && fchmod(fd, file->mode & 07777))
        error = errno;
    if (fd >= 0)
        close(fd);
    return error;
}

void files_put(uint32_t id, const char *payload, size_t length) {
    const char *cursor = payload, *end = payload + length;
    mode_t old = umask(0);
    int error = 0;
    while (!error && cursor < end) {
        struct put_file file;
        if ((size_t)(end - cursor) < sizeof file) {
            error = EPROTO;
            break;
        }
        memcpy(&file, cursor, sizeof file);
        cursor += sizeof file;
        if (file.path_length < 1 || file.path_length > PATH_MAX || (uint64_t)(end - cursor) < file.path_length + file.data_length ||
            cursor[file.path_length - 1]) {
            error = EPROTO;
            break;
        }
        error = put_one(&file, cursor, cursor + file.path_length);
        cursor += file.path_length + file.data_length;
    }
    umask(old);
    reply_errno(id, error);
}

static int remove_tree(int parent, const char *name) {
    if (!unlinkat(parent, name, 0) || errno == ENOENT)
        return 0;
    if (errno != EISDIR && errno != EPERM)
        return errno;
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC), error = 0;
    DIR *directory = fd < 0 ? NULL : fdopendir(fd);
    struct dirent *item;
    if (!directory)
        return errno;
    while (!error && (item = readdir(directory)))
        if (strcmp(item->d_name, ".") && strcmp(item->d_name, ".."))
            error = remove_tree(fd, item->d_name);
    closedir(directory);
    return error ? error : unlinkat(parent, name, AT_REMOVEDIR) ? errno : 0;
}

void files_remove(uint32_t id, const char *payload, size_t length) {
    int error = 0;
    for (const char *path = payload; !error && path < payload + length; path += strlen(path) + 1) {
        char parent[PATH_MAX];
        const char *name;
        int directory = open_parent(path, parent, &name, NULL);
        error = directory < 0 ? errno == ENOENT ? 0 : errno : remove_tree(directory, name);
        if (directory >= 0)
            close(directory);
    }
    reply_errno(id, error);
}

void files_get(uint32_t id, const char *payload, size_t length) {
    struct get_request request;
    struct stat st;
    struct statfs fs;
    if (length <= sizeof request)
        return reply_errno(id, EPROTO);
    memcpy(&request, payload, sizeof request);
    int fd = open_below(root_fd(), payload + sizeof request, O_RDONLY | O_NONBLOCK | O_NOCTTY, 0);
    int error = fd < 0 ? errno : 0;
    if (!error && (fstat(fd, &st) || fstatfs(fd, &fs)))
        error = errno;
    if (!error && (!S_ISREG(st.st_mode) || fs.f_type == PROC_MAGIC))
        error = S_ISDIR(st.st_mode) ? EISDIR : EACCES;
    if (!error && (uint64_t)st.st_size > request.max_bytes)
        error = EFBIG;
    size_t room = error ? 0 : (size_t)(request.max_bytes < MAX_FRAME - 64 ? request.max_bytes : MAX_FRAME - 64), used = 0;
    if (room > (size_t)st.st_size + 1)
        room = (size_t)st.st_size + 1; /* one more byte shows a file that grows while it is read */
    char *data = error ? NULL : malloc(room + 1);
    if (!error && !data)
        error = ENOMEM;
    while (!error && used < room + 1) {
        ssize_t n = read(fd, data + used, room + 1 - used);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            error = errno;
        if (n <= 0)
            break;
        used += (size_t)n;
    }
    if (!error && used > request.max_bytes)
        error = EFBIG;
    if (fd >= 0)
        close(fd);
    int32_t value = error;
    reply(id, F_REPLY, &value, sizeof value, data, error ? 0 : used);
    free(data);
}
