/* What the modes of the bare loop share. */
#ifndef BARE_LOOP_H
#define BARE_LOOP_H

#include "rdkafka.h"

/* Records taken by one call. */
#define BATCH 1024

_Noreturn void die(const char *what, const char *why);
void set(rd_kafka_conf_t *conf, const char *key, const char *value);
/* Sets an argument of the form KEY=VALUE. */
void set_argument(rd_kafka_conf_t *conf, char *argument);
rd_kafka_t *client(rd_kafka_type_t type, rd_kafka_conf_t *conf);

/* Seconds of the clock, and of the process's CPU time. */
double wall(void);
double cpu(void);

/* A consumer of the `count` arguments KEY=VALUE. */
rd_kafka_t *reader(const char *bootstrap, int count, char **keys);
/* Every partition of a topic from its first record, forwarded to one queue. */
rd_kafka_queue_t *assign_all(rd_kafka_t *rk, const char *topic, int partitions);
/* Takes a batch; without records, waits 100 ms for the first one. */
long take(rd_kafka_t *rk, rd_kafka_queue_t *queue, rd_kafka_message_t **batch);
/* Prints the line of JSON. */
void print_result(long records, long bytes, double seconds, double cpu_seconds);

int load(int argc, char **args);
int relay(int argc, char **args);
int create_topic(int argc, char **args);
int delete_topic(int argc, char **args);
int print_ends(int argc, char **args);

#endif
