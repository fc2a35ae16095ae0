/* bare-loop create BOOTSTRAP TOPIC PARTITIONS
 * bare-loop delete BOOTSTRAP TOPIC
 * bare-loop ends BOOTSTRAP TOPIC PARTITIONS    prints the end offset of each partition, as JSON */
#include "bare_loop.h"

#include <stdio.h>
#include <stdlib.h>

#define TIMEOUT_MS 30000

static rd_kafka_t *asker(const char *bootstrap) {
        rd_kafka_conf_t *conf = rd_kafka_conf_new();
        set(conf, "bootstrap.servers", bootstrap);
        return client(RD_KAFKA_PRODUCER, conf);
}

/* Waits for the result of a request about one topic. */
static int finish(rd_kafka_queue_t *queue, const char *topic,
                  const rd_kafka_topic_result_t **(*results)(rd_kafka_event_t *,
                                                             size_t *)) {
        rd_kafka_event_t *event = rd_kafka_queue_poll(queue, TIMEOUT_MS);
        if (!event)
                die(topic, "no answer");
        if (rd_kafka_event_error(event))
                die(topic, rd_kafka_event_error_string(event));
        size_t count;
        const rd_kafka_topic_result_t **all = results(event, &count);
        for (size_t n = 0; n < count; n++)
                if (rd_kafka_topic_result_error(all[n]))
                        die(topic, rd_kafka_err2str(rd_kafka_topic_result_error(all[n])));
        _Exit(0);
}

static const rd_kafka_topic_result_t **created(rd_kafka_event_t *event,
                                               size_t *count) {
        return rd_kafka_CreateTopics_result_topics(
            rd_kafka_event_CreateTopics_result(event), count);
}

static const rd_kafka_topic_result_t **deleted(rd_kafka_event_t *event,
                                               size_t *count) {
        return rd_kafka_DeleteTopics_result_topics(
            rd_kafka_event_DeleteTopics_result(event), count);
}

int create_topic(int argc, char **args) {
        if (argc != 3)
                die("usage", "create BOOTSTRAP TOPIC PARTITIONS");
        char why[256];
        rd_kafka_t *rk          = asker(args[0]);
        rd_kafka_queue_t *queue = rd_kafka_queue_new(rk);
        rd_kafka_NewTopic_t *topic =
            rd_kafka_NewTopic_new(args[1], atoi(args[2]), 1, why, sizeof why);
        if (!topic)
                die(args[1], why);
        rd_kafka_CreateTopics(rk, &topic, 1, NULL, queue);
        return finish(queue, args[1], created);
}

int delete_topic(int argc, char **args) {
        if (argc != 2)
                die("usage", "delete BOOTSTRAP TOPIC");
        rd_kafka_t *rk               = asker(args[0]);
        rd_kafka_queue_t *queue      = rd_kafka_queue_new(rk);
        rd_kafka_DeleteTopic_t *topic = rd_kafka_DeleteTopic_new(args[1]);
        rd_kafka_DeleteTopics(rk, &topic, 1, NULL, queue);
        return finish(queue, args[1], deleted);
}

/* The end offset of a partition. A new one may have no leader yet, so that errors are final only after a time. */
static int64_t end_of(rd_kafka_t *rk, const char *topic, int partition) {
        double deadline = wall() + TIMEOUT_MS / 1e3;
        int64_t first = 0, end = 0;
        rd_kafka_resp_err_t err;
        while ((err = rd_kafka_query_watermark_offsets(rk, topic, partition, &first,
                                                       &end, TIMEOUT_MS))) {
                if (wall() > deadline)
                        die(topic, rd_kafka_err2str(err));
                rd_kafka_poll(rk, 50);
        }
        if (first)
                die(topic, "its first records are gone");
        return end;
}

int print_ends(int argc, char **args) {
        if (argc != 3)
                die("usage", "ends BOOTSTRAP TOPIC PARTITIONS");
        rd_kafka_t *rk = asker(args[0]);
        for (int p = 0; p < atoi(args[2]); p++)
                printf("%s%lld", p ? ", " : "[", (long long)end_of(rk, args[1], p));
        printf("]\n");
        fflush(stdout);
        _Exit(0);
}
