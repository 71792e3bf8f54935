/* The processes below one process, however they tried to get away: found in /proc, stopped, then killed. */
#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "box.h"

#define PIDS (4u << 20) /* the kernel's own bound */

struct process {
    pid_t pid, parent;
    char state;
};

static struct process *all; /* what list_processes found */
static int all_room;
static pid_t *already_stopped; /* by somebody inside, before stop_everything */
static int already_count;

static int list_processes(void) {
    DIR *directory = opendir("/proc");
    struct dirent *entry;
    int count = 0;
    while (directory && (entry = readdir(directory))) {
        char path[64], text[512], *close_bracket;
        if (!isdigit((unsigned char)entry->d_name[0]))
            continue;
        snprintf(path, sizeof path, "/proc/%.20s/stat", entry->d_name);
        int fd = open(path, O_RDONLY | O_CLOEXEC);
        if (fd < 0)
            continue;
        ssize_t n = read(fd, text, sizeof text - 1);
        close(fd);
        if (n <= 0)
            continue;
        text[n] = 0;
        /* the name between brackets may hold anything; what follows the last bracket is the kernel's */
        if (!(close_bracket = strrchr(text, ')')) || strlen(close_bracket) < 4)
            continue;
        if (count == all_room) {
            all_room = all_room ? all_room * 2 : 256;
            if (!(all = realloc(all, (size_t)all_room * sizeof *all)))
                _exit(12);
        }
        all[count++] = (struct process){atoi(entry->d_name), atoi(close_bracket + 4), close_bracket[2]};
    }
    if (directory)
        closedir(directory);
    return count;
}

static unsigned char known[PIDS / 8]; /* members of the tree at hand */

static int is_known(pid_t pid) {
    return (unsigned)pid < PIDS && known[pid / 8] >> (pid % 8) & 1;
}

static pid_t *tree; /* the members in the order in which they were found */
static int members, tree_room;

static void join_tree(pid_t pid) {
    if (members == tree_room) {
        tree_room = tree_room ? tree_room * 2 : 256;
        if (!(tree = realloc(tree, (size_t)tree_room * sizeof *tree)))
            _exit(12);
    }
    tree[members++] = pid;
    if ((unsigned)pid < PIDS)
        known[pid / 8] |= (unsigned char)(1u << (pid % 8));
    kill(pid, SIGSTOP);
}

/* Stopped first: a stopped fork bomb keeps its places but makes no more processes, so the walk comes to an end. */
void kill_tree(pid_t top) {
    members = 0;
    join_tree(top);
    for (int found = 1; found;) {
        int count = list_processes();
        found = 0;
        for (int grew = 1; grew;) {
            grew = 0;
            for (int i = 0; i < count; i++)
                if (!is_known(all[i].pid) && is_known(all[i].parent)) {
                    join_tree(all[i].pid);
                    grew = found = 1;
                }
        }
    }
    for (int k = members - 1; k >= 0; k--) {
        kill(tree[k], SIGKILL);
        if ((unsigned)tree[k] < PIDS)
            known[tree[k] / 8] = 0;
    }
}

/* The processes whose parent this is, at most `room`; how many. */
int list_children(pid_t parent, pid_t *list, int room) {
    int count = 0, found = list_processes();
    for (int i = 0; i < found && count < room; i++)
        if (all[i].parent == parent && all[i].state != 'Z')
            list[count++] = all[i].pid;
    return count;
}

/* Stop every process but PID 1 and wait until all stand still. 0, or ETIMEDOUT: then they move again. */
int stop_everything(void) {
    int64_t began = now_us();
    int count = list_processes();
    already_count = 0;
    if (!(already_stopped = realloc(already_stopped, ((size_t)count + 1) * sizeof *already_stopped)))
        _exit(12);
    for (int i = 0; i < count; i++)
        if (all[i].state == 'T')
            already_stopped[already_count++] = all[i].pid;
    for (;;) {
        int moving = 0;
        kill(-1, SIGSTOP);
        count = list_processes();
        /* whoever waits in vfork for a child that stands still shows as D: it cannot move either */
        const char *still = now_us() - began > 30000 ? "TtZXD" : "TtZX";
        for (int i = 0; i < count; i++)
            moving += all[i].pid != 1 && !strchr(still, all[i].state);
        if (!moving)
            return 0;
        if (now_us() - began > 2000000) {
            move_everything();
            return ETIMEDOUT;
        }
        usleep(500);
    }
}

/* The youngest first: a shell should not see a child standing still that goes on a moment later. */
void move_everything(void) {
    int count = list_processes();
    for (int i = count - 1; i >= 0; i--) {
        int keep = all[i].pid == 1;
        for (int k = 0; k < already_count && !keep; k++)
            keep = already_stopped[k] == all[i].pid;
        if (!keep)
            kill(all[i].pid, SIGCONT);
    }
    already_count = 0;
}
