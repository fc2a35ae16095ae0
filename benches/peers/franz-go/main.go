// A relay with franz-go, to compare the service with.
//
//	franz-go-relay BOOTSTRAP IN OUT PARTITIONS COUNT EMITS DROP_PERCENT
//
// Its arguments and its result are those of `bare-loop relay` (benches/src/relay.c), without the keys.
package main

import (
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
)

// Time limit of a run.
const limit = 5 * time.Minute

func die(what string, why any) {
	fmt.Fprintf(os.Stderr, "franz-go-relay: %s: %v\n", what, why)
	os.Exit(1)
}

func number(text string) int64 {
	value, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		die(text, err)
	}
	return value
}

// CPU seconds of the process.
func cpu() float64 {
	var used syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &used); err != nil {
		die("getrusage", err)
	}
	return time.Duration(used.Utime.Nano() + used.Stime.Nano()).Seconds()
}

func peakKiB() int64 {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		die("status", err)
	}
	_, rest, _ := strings.Cut(string(status), "VmHWM:")
	return number(strings.Fields(rest)[0])
}

// A client that reads all partitions of a topic from their start, with the limits of the service's clients.
func client(bootstrap, in, out string, partitions int64) *kgo.Client {
	offsets := make(map[int32]kgo.Offset)
	for partition := range int32(partitions) {
		offsets[partition] = kgo.NewOffset().AtStart()
	}
	client, err := kgo.NewClient(
		kgo.SeedBrokers(strings.Split(bootstrap, ",")...),
		kgo.ConsumePartitions(map[string]map[int32]kgo.Offset{in: offsets}),
		kgo.FetchMaxBytes(4<<20),
		kgo.FetchIsolationLevel(kgo.ReadCommitted()),
		// Idempotent by default.
		kgo.DefaultProduceTopic(out),
		kgo.RequiredAcks(kgo.AllISRAcks()),
		kgo.ProducerLinger(5*time.Millisecond),
		kgo.ProducerBatchMaxBytes(1_000_000),
		kgo.ProducerBatchCompression(kgo.NoCompression()),
		kgo.MaxBufferedRecords(100_000),
		kgo.MaxBufferedBytes(98_681<<10),
	)
	if err != nil {
		die("client", err)
	}
	return client
}

func main() {
	if len(os.Args) != 8 {
		die("usage", "BOOTSTRAP IN OUT PARTITIONS COUNT EMITS DROP_PERCENT")
	}
	count, emits, drop := number(os.Args[5]), number(os.Args[6]), number(os.Args[7])
	client := client(os.Args[1], os.Args[2], os.Args[3], number(os.Args[4]))
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	var acknowledged atomic.Int64
	delivered := func(_ *kgo.Record, err error) {
		if err != nil {
			die("delivery", err)
		}
		acknowledged.Add(1)
	}
	var seen, bytes, produced int64
	var started time.Time
	var cpuStarted float64
	for seen < count {
		fetches := client.PollFetches(ctx)
		if err := fetches.Err(); err != nil {
			die("poll", err)
		}
		if started.IsZero() && fetches.NumRecords() > 0 {
			started, cpuStarted = time.Now(), cpu()
		}
		fetches.EachRecord(func(record *kgo.Record) {
			seen++
			bytes += int64(len(record.Value))
			if record.Offset%100 < drop {
				return
			}
			for range emits {
				client.Produce(ctx, &kgo.Record{Key: record.Key, Value: record.Value}, delivered)
				produced++
			}
		})
	}
	if err := client.Flush(ctx); err != nil {
		die("flush", err)
	}
	if acknowledged.Load() != produced {
		die("flush", fmt.Sprintf("%d of %d acknowledged", acknowledged.Load(), produced))
	}
	fmt.Printf("{\"records\": %d, \"bytes\": %d, \"seconds\": %.6f, \"cpu_seconds\": %.6f, \"peak_kib\": %d}\n",
		seen, bytes, time.Since(started).Seconds(), cpu()-cpuStarted, peakKiB())
}
