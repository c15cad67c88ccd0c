package bootstrap

import (
	"bytes"
	"compress/gzip"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sevagent/internal/must"
)

// testDB returns a database of testdata. go.etcd.io/bbolt 1.5 made them, with the buckets and keys of the ECS agent
// 1.105: fresh has its metadata in line; long, whose cluster's name is as long as can be, on a page; and deep, with a
// few hundred more keys, on several below a branch.
func testDB(t testing.TB, name string) []byte {
	data := must.Get(os.ReadFile("testdata/"+name+".db.gz"))(t, "read a database")
	r := must.Get(gzip.NewReader(bytes.NewReader(data)))(t, "read a database")
	return must.Get(io.ReadAll(r))(t, "read a database")
}

func TestSavedElsewhere(t *testing.T) {
	long := strings.Repeat("l", 255)
	const instance = "i-0123456789abcdef0"
	for _, c := range []struct {
		name, db, json, instance, cluster, want string
	}{
		{"nothing saved", "", "", instance, "prod", ""},
		{"same", "fresh", "", instance, "legacy", ""},
		{"another", "fresh", "", instance, "prod",
			"cluster legacy instead of prod is saved in DIR/agent.db; the ECS agent " +
				"would end; remove that file, which forgets its tasks, or join legacy"},
		{"another, on a page", "long", "", instance, "prod", "cluster " + long + " instead of prod"},
		{"another, below a branch", "deep", "", instance, "prod", "cluster legacy instead of prod"},
		{"of another instance", "fresh", "", "i-00000000000000000", "prod", ""},
		{"older agent", "", `{"Data":{"Cluster":"old","EC2InstanceID":"` + instance + `"}}`, instance, "prod",
			"cluster old instead of prod is saved in DIR/ecs_agent_data.json"},
		{"older agent, another instance", "", `{"Data":{"Cluster":"old","EC2InstanceID":"i-1"}}`, instance, "prod", ""},
		{"the database counts", "fresh", `{"Data":{"Cluster":"old"}}`, instance, "legacy", ""},
		{"neither is readable", "damaged", "{", instance, "prod", ""},
	} {
		dir := t.TempDir()
		write := func(name string, data []byte) {
			must.Do(t, os.WriteFile(filepath.Join(dir, name), data, 0o600), "write %s", name)
		}
		switch {
		case c.db == "damaged":
			write("agent.db", testDB(t, "fresh")[:5000])
		case c.db != "":
			write("agent.db", testDB(t, c.db))
		}
		if c.json != "" {
			write("ecs_agent_data.json", []byte(c.json))
		}
		got := ""
		if err := savedElsewhere(dir, c.instance, c.cluster); err != nil {
			got = strings.ReplaceAll(err.Error(), dir, "DIR")
		}
		if !strings.HasPrefix(got, c.want) || c.want == "" && got != "" {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// TestBoltRoot: the newer of two meta pages counts, and a torn one does not.
func TestBoltRoot(t *testing.T) {
	db := testDB(t, "fresh")
	root := must.Get(boltBucket(db, "metadata"))(t, "read a database")
	if string(root["cluster-name"]) != `"legacy"` {
		t.Errorf("the metadata are %s", root)
	}
	for _, page := range []int{0, 4096} {
		torn := bytes.Clone(db)
		torn[page+30]++
		if _, err := boltBucket(torn, "metadata"); err != nil {
			t.Errorf("the meta page at %d is torn: %v", page, err)
		}
	}
	both := bytes.Clone(db)
	both[30]++
	both[4096+30]++
	if _, err := boltBucket(both, "metadata"); err == nil {
		t.Error("a database without a meta page is read")
	}
}

// FuzzBolt: a damaged database neither ends the program nor keeps it for long.
func FuzzBolt(f *testing.F) {
	f.Add(testDB(f, "fresh"), uint16(4096), byte(1))
	f.Fuzz(func(t *testing.T, db []byte, at uint16, flip byte) {
		if len(db) > 0 {
			db = bytes.Clone(db)
			db[int(at)*8%len(db)] ^= flip
		}
		boltBucket(db, "metadata")
	})
}
