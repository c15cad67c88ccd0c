package bootstrap

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"io"
	"os"
	"path/filepath"
)

// savedElsewhere returns an error if the ECS agent has saved another cluster in its data directory: it would end, for
// good, instead of joining this one (aws/amazon-ecs-agent: agent/app/agent.go, setClusterInConfig). State of another
// instance, as an AMI that was made from a node has, it discards. What cannot be read here is left to the agent.
func savedElsewhere(dir, instance, cluster string) error {
	file := filepath.Join(dir, "agent.db")
	saved, err := readAgentDB(file)
	if err != nil || saved.version == "" { // as the agent, which had only the other file before 1.44
		file = filepath.Join(dir, "ecs_agent_data.json")
		saved = readAgentState(file)
	}
	if saved.cluster == "" || saved.cluster == cluster || saved.instance != "" && saved.instance != instance {
		return nil
	}
	return advised{fmt.Errorf("cluster %s instead of %s is saved in %s", saved.cluster, cluster, file),
		"the ECS agent would end; remove that file, which forgets its tasks, or join " + saved.cluster}
}

// saved is what the ECS agent knows of itself from before.
type saved struct{ version, cluster, instance string }

// readAgentState reads the file of agents before 1.44 (agent/statemanager/state_manager.go).
func readAgentState(file string) saved {
	var state struct {
		Data struct{ Cluster, EC2InstanceID string }
	}
	if data, err := readBounded(file); err != nil || json.Unmarshal(data, &state) != nil {
		return saved{}
	}
	return saved{"", state.Data.Cluster, state.Data.EC2InstanceID}
}

// readAgentDB reads the bucket "metadata" of the agent's database (agent/data/metadata_client.go). Values are JSON.
func readAgentDB(file string) (s saved, err error) {
	data, err := readBounded(file)
	if err != nil {
		return s, err
	}
	metadata, err := boltBucket(data, "metadata")
	if err != nil {
		return s, err
	}
	for key, into := range map[string]*string{
		"agent-version": &s.version, "cluster-name": &s.cluster, "ec2-instance-id": &s.instance,
	} {
		if value, ok := metadata[key]; ok {
			err = errors.Join(err, json.Unmarshal(value, into))
		}
	}
	return s, err
}

func readBounded(file string) ([]byte, error) {
	const most = 256 << 20
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() || info.Size() > most {
		return nil, fmt.Errorf("read %s: not a file of at most %d bytes", file, most)
	}
	return io.ReadAll(io.LimitReader(f, most))
}

// boltBucket returns the pairs of a top-level bucket in a database of go.etcd.io/bbolt, whose own code waits for the
// lock that the running agent holds, and ends the program if the file is damaged. Its format is that of
// internal/common/{page,meta,bucket}.go there, in the byte order of the machine.
func boltBucket(db []byte, name string) (map[string][]byte, error) {
	root, size, err := boltRoot(db)
	if err != nil {
		return nil, err
	}
	b := bolt{db: db, size: size, pages: len(db) / size}
	buckets, err := b.pairs(root)
	bucket := buckets[name]
	if err != nil || len(bucket) < 16 {
		return nil, errors.Join(err, fmt.Errorf("no bucket %s", name))
	}
	if page := binary.LittleEndian.Uint64(bucket); page != 0 {
		return b.pairs(page)
	}
	all := make(map[string][]byte) // in line
	return all, b.read(bucket[16:], all)
}

// boltRoot returns the page of the root bucket, by the newer of the two valid meta pages, and the size of pages.
func boltRoot(db []byte) (root uint64, size int, err error) {
	var newest uint64
	for _, at := range []int{0, 4 << 10, 16 << 10, 64 << 10} { // the second page, for the usual sizes
		if len(db) < at+80 {
			break
		}
		meta := db[at+16 : at+80]
		sum := fnv.New64a()
		sum.Write(meta[:56])
		pageSize, id := int(binary.LittleEndian.Uint32(meta[8:])), binary.LittleEndian.Uint64(meta[48:])
		if binary.LittleEndian.Uint32(meta) != 0xED0CDAED || sum.Sum64() != binary.LittleEndian.Uint64(meta[56:]) ||
			pageSize < 1<<10 || at != 0 && at != pageSize || size != 0 && id < newest {
			continue
		}
		root, size, newest = binary.LittleEndian.Uint64(meta[16:]), pageSize, id
	}
	if size == 0 {
		return 0, 0, errors.New("not a bbolt database")
	}
	return root, size, nil
}

type bolt struct {
	db    []byte
	size  int
	pages int // that may still be read: pages of a damaged file may point at each other
}

var errDamaged = errors.New("the database is damaged")

// pairs returns all pairs below a page.
func (b *bolt) pairs(page uint64) (map[string][]byte, error) {
	all := make(map[string][]byte)
	return all, b.below(page, all)
}

func (b *bolt) below(page uint64, all map[string][]byte) error {
	if page >= uint64(len(b.db)/b.size) || b.pages == 0 {
		return errDamaged
	}
	b.pages--
	return b.read(b.db[int(page)*b.size:], all)
}

// read reads a page: id 8, flags 2, count 2, overflow 4, then the elements, each of 16 bytes; keys and values follow.
func (b *bolt) read(page []byte, all map[string][]byte) error {
	const branch, leaf = 1, 2
	if len(page) < 16 {
		return errDamaged
	}
	flags, count := binary.LittleEndian.Uint16(page[8:]), int(binary.LittleEndian.Uint16(page[10:]))
	for i := range count {
		if len(page) < 32+16*i {
			return errDamaged
		}
		element := page[16+16*i:]
		number := func(at int) uint64 { return uint64(binary.LittleEndian.Uint32(element[at:])) }
		switch flags {
		case branch: // position 4, size of the key 4, page 8
			if err := b.below(binary.LittleEndian.Uint64(element[8:]), all); err != nil {
				return err
			}
		case leaf: // flags 4, position 4, size of the key 4, of the value 4
			key := number(4)
			value, end := key+number(8), key+number(8)+number(12)
			if end > uint64(len(element)) {
				return errDamaged
			}
			all[string(element[key:value])] = element[value:end]
		default:
			return errDamaged
		}
	}
	return nil
}
