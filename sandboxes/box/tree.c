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

#define MAX_TREE 8192

struct process {
    pid_t pid, parent;
    char state;
};

static pid_t already_stopped[MAX_TREE]; /* by somebody inside, before stop_everything */
static int already_count;

static int list_processes(struct process *list) {
    DIR *directory = opendir("/proc");
    struct dirent *entry;
    int count = 0;
    while (directory && count < MAX_TREE && (entry = readdir(directory))) {
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
        list[count++] = (struct process){atoi(entry->d_name), atoi(close_bracket + 4), close_bracket[2]};
    }
    if (directory)
        closedir(directory);
    return count;
}

/* Stopped first: a stopped fork bomb keeps its places but makes no more processes, so the walk comes to an end. */
void kill_tree(pid_t top) {
    static struct process list[MAX_TREE];
    static pid_t tree[MAX_TREE];
    int members = 1;
    tree[0] = top;
    kill(top, SIGSTOP);
    for (int found = 1; found;) {
        int count = list_processes(list);
        found = 0;
        for (int grew = 1; grew;) {
            grew = 0;
            for (int i = 0; i < count; i++) {
                int known = 0, below = 0;
                for (int k = 0; k < members && !known; k++) {
                    known = tree[k] == list[i].pid;
                    below |= tree[k] == list[i].parent;
                }
                if (known || !below || members == MAX_TREE)
                    continue;
                tree[members++] = list[i].pid;
                kill(list[i].pid, SIGSTOP);
                grew = found = 1;
            }
        }
    }
    for (int k = members - 1; k >= 0; k--)
        kill(tree[k], SIGKILL);
}

/* The processes whose parent this is, at most `room`; how many. */
int list_children(pid_t parent, pid_t *list, int room) {
    static struct process all[MAX_TREE];
    int count = 0, found = list_processes(all);
    for (int i = 0; i < found && count < room; i++)
        if (all[i].parent == parent && all[i].state != 'Z')
            list[count++] = all[i].pid;
    return count;
}

/* Stop every process but PID 1 and wait until all stand still. 0, or ETIMEDOUT: then they move again. */
int stop_everything(void) {
    static struct process list[MAX_TREE];
    int64_t began = now_us();
    already_count = 0;
    int count = list_processes(list);
    for (int i = 0; i < count; i++)
        if (list[i].state == 'T')
            already_stopped[already_count++] = list[i].pid;
    for (;;) {
        int moving = 0;
        kill(-1, SIGSTOP);
        count = list_processes(list);
        /* whoever waits in vfork for a child that stands still shows as D: it cannot move either */
        const char *still = now_us() - began > 30000 ? "TtZXD" : "TtZX";
        for (int i = 0; i < count; i++)
            moving += list[i].pid != 1 && !strchr(still, list[i].state);
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
    static struct process list[MAX_TREE];
    int count = list_processes(list);
    for (int i = count - 1; i >= 0; i--) {
        int keep = list[i].pid == 1;
        for (int k = 0; k < already_count && !keep; k++)
            keep = already_stopped[k] == list[i].pid;
        if (!keep)
            kill(list[i].pid, SIGCONT);
    }
    already_count = 0;
}
