/* Export: what the upper layer (or, without one, the merged view) of a frozen sandbox holds at some paths, as a stream of entries.
 *
 * Only PID 1 reads; nothing else lives. Names come in sorted order, so the same tree gives the same bytes.
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
#include <sys/sysmacros.h>
#include <unistd.h>

#include "box.h"

struct export {
    uint32_t id;
    int upper; /* -1: merged view */
    uint64_t bytes_left;
    uint32_t files_left;
    int64_t looks_left; /* names of the merged view that may still be compared with the upper layer */
    int hidden;         /* opaque directories above the current one */
    char *buffer;
    size_t used;
};

#define EXPORT_CHUNK (256 * 1024)

static void export_flush(struct export *e) {
    if (e->used)
        reply_blocking(e->id, F_CHUNK, NULL, 0, e->buffer, e->used);
    e->used = 0;
}

static void export_bytes(struct export *e, const void *data, size_t length) {
    while (length) {
        size_t n = EXPORT_CHUNK - e->used < length ? EXPORT_CHUNK - e->used : length;
        memcpy(e->buffer + e->used, data, n);
        e->used += n;
        data = (const char *)data + n;
        length -= n;
        if (e->used == EXPORT_CHUNK)
            export_flush(e);
    }
}

static int export_head(struct export *e, char type, const char *path, const struct stat *st, int opaque, uint64_t size) {
    struct export_entry entry = {.type = (uint32_t)type, .mode = st->st_mode & 07777, .uid = st->st_uid, .gid = st->st_gid,
                                 .path_length = (uint32_t)strlen(path), .opaque = (uint32_t)opaque, .size = size,
                                 .mtime_ns = (int64_t)st->st_mtim.tv_sec * 1000000000 + st->st_mtim.tv_nsec};
    if (!e->files_left-- || size > e->bytes_left)
        return EFBIG;
    e->bytes_left -= size;
    export_bytes(e, &entry, sizeof entry);
    export_bytes(e, path, entry.path_length);
    return 0;
}

static int export_file(struct export *e, int parent, const char *name, const char *path, const struct stat *st) {
    char data[32768];
    int fd = openat(parent, name, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int error = export_head(e, 'f', path, st, 0, (uint64_t)st->st_size);
    uint64_t left = (uint64_t)st->st_size;
    while (!error && left) {
        ssize_t n = read(fd, data, left < sizeof data ? left : sizeof data);
        if (n <= 0)
            error = n < 0 ? errno : EIO; /* frozen: a file cannot have become shorter */
        else {
            export_bytes(e, data, (size_t)n);
            left -= (uint64_t)n;
        }
    }
    close(fd);
    return error;
}

static int export_entry(struct export *e, int parent, const char *name, const char *path);

/* A directory hides what lies below it in lower layers exactly when every name it shows comes from the upper layer and every
 * directory it shows hides what lies below it, too. Takes both descriptors. A tree too large to look through does not hide. */
static int shows_only_upper(struct export *e, int merged, int upper_directory) {
    DIR *directory = merged < 0 ? NULL : fdopendir(merged);
    struct dirent *item;
    struct stat st;
    int only = directory != NULL && upper_directory >= 0;
    while (only && (item = readdir(directory))) {
        if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, ".."))
            continue;
        only = e->looks_left-- > 0 && !fstatat(upper_directory, item->d_name, &st, AT_SYMLINK_NOFOLLOW);
        if (only && S_ISDIR(st.st_mode)) {
            int flags = O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC;
            only = shows_only_upper(e, openat(merged, item->d_name, flags), openat(upper_directory, item->d_name, flags));
        }
    }
    if (directory)
        closedir(directory);
    if (upper_directory >= 0)
        close(upper_directory);
    return only;
}

static int hides_lower(struct export *e, const char *path, int upper_directory) {
    if (e->upper < 0)
        return 1;
    char absolute[PATH_MAX];
    snprintf(absolute, sizeof absolute, "/%s", path);
    int merged = open_below(root_fd(), absolute, O_RDONLY | O_DIRECTORY, RESOLVE_NO_SYMLINKS);
    return shows_only_upper(e, merged, openat(upper_directory, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
}

static int by_name(const void *a, const void *b) {
    return strcmp(*(char *const *)a, *(char *const *)b);
}

static int export_directory(struct export *e, int parent, const char *name, const char *path, const struct stat *st) {
    int fd = openat(parent, name, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
    if (fd < 0)
        return errno;
    int opaque = !e->hidden && hides_lower(e, path, fd); /* below an opaque directory there is nothing left to hide */
    int error = export_head(e, 'd', path, st, opaque, 0);
    e->hidden += opaque;
    DIR *directory = fdopendir(fd);
    struct dirent *item;
    char **names = NULL;
    size_t count = 0, room = 0;
    while (!error && directory && (item = readdir(directory))) {
        if (!strcmp(item->d_name, ".") || !strcmp(item->d_name, ".."))
            continue;
        if (count == room) {
            room = room ? room * 2 : 64;
            names = realloc(names, room * sizeof *names);
        }
        if (!names || !(names[count++] = strdup(item->d_name)))
            _exit(12);
        if (count > e->files_left)
            error = EFBIG;
    }
    if (count)
        qsort(names, count, sizeof *names, by_name); /* the same tree gives the same bytes */
    for (size_t i = 0; i < count; i++) {
        char below[PATH_MAX];
        if (!error && snprintf(below, sizeof below, "%s/%s", path, names[i]) >= (int)sizeof below)
            error = ENAMETOOLONG;
        if (!error)
            error = export_entry(e, fd, names[i], below);
        free(names[i]);
    }
    free(names);
    e->hidden -= opaque;
    if (directory)
        closedir(directory);
    return error;
}

static int export_entry(struct export *e, int parent, const char *name, const char *path) {
    struct stat st;
    char target[PATH_MAX];
    if (fstatat(parent, name, &st, AT_SYMLINK_NOFOLLOW))
        return errno;
    if (S_ISDIR(st.st_mode))
        return export_directory(e, parent, name, path, &st);
    if (S_ISREG(st.st_mode))
        return export_file(e, parent, name, path, &st);
    if (S_ISCHR(st.st_mode) && st.st_rdev == makedev(0, 0) && e->upper >= 0)
        return export_head(e, 'w', path, &st, 0, 0);
    if (S_ISLNK(st.st_mode)) {
        ssize_t n = readlinkat(parent, name, target, sizeof target);
        if (n < 0)
            return errno;
        int error = export_head(e, 'l', path, &st, 0, (uint64_t)n);
        if (!error)
            export_bytes(e, target, (size_t)n);
        return error;
    }
    return export_head(e, 's', path, &st, 0, 0);
}

/* One asked path: its parents as plain directories, then itself with everything below. */
static int export_path(struct export *e, const char *asked) {
    char path[PATH_MAX];
    struct stat st;
    int fd = e->upper >= 0 ? dup(e->upper) : open("/", O_RDONLY | O_DIRECTORY | O_CLOEXEC), error = 0;
    size_t start = 0, length;
    while (*asked == '/')
        asked++;
    if (!*asked || strlen(asked) >= sizeof path - 2)
        error = EINVAL;
    strcpy(path, error ? "" : asked);
    for (length = strlen(path); length && path[length - 1] == '/';)
        path[--length] = 0;
    while (!error) {
        char *slash = strchr(path + start, '/');
        if (slash)
            *slash = 0;
        if (fstatat(fd, path + start, &st, AT_SYMLINK_NOFOLLOW)) {
            if (errno != ENOENT && errno != ENOTDIR)
                error = errno;
            else if (e->upper < 0) {
                memset(&st, 0, sizeof st);
                error = export_head(e, 'w', path, &st, 0, 0); /* gone, or never there: either way not there now */
            }
            break;
        }
        if (!slash) {
            error = export_entry(e, fd, path + start, path);
            break;
        }
        if (!S_ISDIR(st.st_mode)) { /* a parent was replaced by something else: that is the change */
            error = export_entry(e, fd, path + start, path);
            break;
        }
        int below = openat(fd, path + start, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
        if (below < 0) {
            error = errno;
            break;
        }
        error = export_head(e, 'd', path, &st, 0, 0); /* what a parent hides was not asked for */
        close(fd);
        fd = below;
        *slash = '/';
        start = (size_t)(slash - path) + 1;
    }
    close(fd);
    return error;
}

void files_export(uint32_t id, const char *payload, size_t length, const struct box *box) {
    struct export_request request;
    if (length <= sizeof request)
        return reply_errno(id, EPROTO);
    memcpy(&request, payload, sizeof request);
    struct export e = {.id = id, .upper = box->upper, .bytes_left = request.max_bytes, .files_left = request.max_files,
                       .looks_left = 4 * (int64_t)request.max_files + 1024};
    if (!(e.buffer = malloc(EXPORT_CHUNK)))
        _exit(12);
    int error = 0;
    for (const char *p = payload + sizeof request; !error && p < payload + length; p += strlen(p) + 1)
        error = export_path(&e, p);
    export_flush(&e);
    free(e.buffer);
    reply_errno(id, error);
}
