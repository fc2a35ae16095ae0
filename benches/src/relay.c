/* bare-loop relay BOOTSTRAP IN OUT PARTITIONS COUNT EMITS DROP_PERCENT [KEY=VALUE]... [-- [KEY=VALUE]...]
 *
 * Produces each record of IN to OUT as often as EMITS says, with its key and value, except the given percentage of the
 * offsets. The producer is idempotent; the run ends with the last acknowledgement, and any delivery error ends it at once.
 * One thread does all of it: a batch of acknowledgements costs one event, without a callback per record. */
#include "bare_loop.h"

#include <stdlib.h>
#include <string.h>

/* Seconds without a record or an acknowledgement after which the run has failed. */
#define STALLED 60

struct output {
        rd_kafka_t *rk;
        rd_kafka_topic_t *topic;
        rd_kafka_queue_t *reports;
        long produced, acknowledged;
};

static struct output output_of(const char *bootstrap, const char *topic,
                               int count, char **keys) {
        rd_kafka_conf_t *conf = rd_kafka_conf_new();
        set(conf, "bootstrap.servers", bootstrap);
        for (int n = 0; n < count; n++)
                set_argument(conf, keys[n]);
        set(conf, "enable.idempotence", "true");
        set(conf, "acks", "all");
        rd_kafka_conf_set_events(conf, RD_KAFKA_EVENT_DR);
        struct output output = {0};
        output.rk            = client(RD_KAFKA_PRODUCER, conf);
        output.topic         = rd_kafka_topic_new(output.rk, topic, NULL);
        if (!output.topic)
                die(topic, rd_kafka_err2str(rd_kafka_last_error()));
        output.reports = rd_kafka_queue_get_main(output.rk);
        return output;
}

/* Counts the delivery reports there are; waits for the first one. */
static void count_reports(struct output *output, int timeout_ms) {
        rd_kafka_event_t *event;
        while ((event = rd_kafka_queue_poll(output->reports, timeout_ms))) {
                const rd_kafka_message_t *message;
                while ((message = rd_kafka_event_message_next(event))) {
                        if (message->err)
                                die("delivery", rd_kafka_err2str(message->err));
                        output->acknowledged++;
                }
                rd_kafka_event_destroy(event);
                timeout_ms = 0;
        }
}

static void produce(struct output *output, const rd_kafka_message_t *record) {
        while (rd_kafka_produce(output->topic, RD_KAFKA_PARTITION_UA,
                                RD_KAFKA_MSG_F_COPY, record->payload,
                                record->len, record->key, record->key_len,
                                NULL)) {
                rd_kafka_resp_err_t err = rd_kafka_last_error();
                if (err != RD_KAFKA_RESP_ERR__QUEUE_FULL)
                        die("produce", rd_kafka_err2str(err));
                count_reports(output, 10);
        }
        output->produced++;
}

int relay(int argc, char **args) {
        if (argc < 7)
                die("usage", "relay BOOTSTRAP IN OUT PARTITIONS COUNT EMITS DROP_PERCENT "
                             "[KEY=VALUE]... [-- [KEY=VALUE]...]");
        long count = atol(args[4]), drop = atol(args[6]);
        int emits = atoi(args[5]), split = 7;
        while (split < argc && strcmp(args[split], "--"))
                split++;
        int own              = split < argc ? argc - split - 1 : 0;
        struct output output = output_of(args[0], args[2], own, args + argc - own);
        rd_kafka_t *rk       = reader(args[0], split - 7, args + 7);
        rd_kafka_queue_t *queue = assign_all(rk, args[1], atoi(args[3]));
        static rd_kafka_message_t *batch[BATCH];
        double started = 0, cpu_started = 0, progress = wall();
        long seen = 0, bytes = 0, before = 0;
        while (seen < count || output.acknowledged < output.produced) {
                long taken = 0;
                if (seen < count)
                        taken = take(rk, queue, batch);
                if (taken && !started) {
                        started     = wall();
                        cpu_started = cpu();
                }
                for (long n = 0; n < taken; n++) {
                        rd_kafka_message_t *record = batch[n];
                        if (!record->err) {
                                seen++;
                                bytes += (long)record->len;
                                if (record->offset % 100 >= drop)
                                        for (int copy = 0; copy < emits; copy++)
                                                produce(&output, record);
                        }
                        rd_kafka_message_destroy(record);
                }
                count_reports(&output, seen < count ? 0 : 100);
                if (taken || output.acknowledged > before)
                        progress = wall();
                else if (wall() - progress > STALLED)
                        die("relay", "neither records nor acknowledgements arrive");
                before = output.acknowledged;
        }
        print_result(seen, bytes, wall() - started, cpu() - cpu_started);
        /* Nothing is committed, so the process can exit without cleanup. */
        _Exit(0);
}
